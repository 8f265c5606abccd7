"""DDIM over any falling list of time steps, with the step of `diffusers`.

The scheduler of `diffusers` always steps from t to t - num_train_timesteps // steps, even if another step is visited
next (`linspace` spacing, or a number of steps that does not divide), and noise remains in the result. Here the visited
steps are the scheduler's only ones, so that the step before is always the next one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

_BELOW_ONE = 1.0 - 2.0**-50
"""Largest eta at a step of pure noise: `diffusers` takes the root of v - sqrt(v)^2 there, and rounding may make that
negative."""


def exact_scheduler(
    alphas_cumprod: Tensor, times: Sequence[int], prediction: str, final_alpha: float = 1.0
) -> DDIMScheduler:
    """Build a scheduler that knows only the visited steps; use it with `take_step`.

    Args:
        alphas_cumprod: Cumulative alphas of all steps, float.
        times: The steps to visit, falling.
        prediction: `v_prediction`, `epsilon` or `sample`.
        final_alpha: Cumulative alpha at which the last step ends; 1 is the clean sample.

    Returns:
        A fresh scheduler of `diffusers`, whose step `len(times) - 1 - index` is `times[index]`.
    """
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=len(times), prediction_type=prediction, clip_sample=False, set_alpha_to_one=True
    )
    # float64, so that coefficients near 0 are exact; the states stay float32.
    scheduler.alphas_cumprod = alphas_cumprod[torch.tensor(list(times)[::-1])].double()
    scheduler.final_alpha_cumprod = torch.tensor(final_alpha, dtype=torch.float64)
    scheduler.set_timesteps(len(times))
    return scheduler


def take_step(
    scheduler: Any, index: int, prediction: Tensor, state: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Take one step of DDIM (arXiv:2010.02502, equation 12).

    Args:
        scheduler: From `exact_scheduler`.
        index: Index of the state's step in its list.
        prediction: Output of the network for the state, of the state's shape.
        state: Noisy sample.
        eta: Standard deviation of the added noise, relative to DDPM's.
        noise: Standard normal, of the state's shape; needed if eta is above 0.

    Returns:
        The sample at the next step; after the last, at the scheduler's final alpha.
    """
    step = len(scheduler.alphas_cumprod) - 1 - index
    if scheduler.alphas_cumprod[step] == 0:
        eta = min(eta, _BELOW_ONE)
    return scheduler.step(prediction, step, state, eta=eta, variance_noise=noise, return_dict=False)[0]
