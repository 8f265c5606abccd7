"""Rectified flow: straight paths from noise to clip, sampled with solvers of `diffusers`; with Euler steps by default.

Shape letters: B batch; latents, noise and states have any shape (B, ...).
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from divot_backbones.objectives.multistep import LEAST_SIGNAL, MultistepSampler, check_solver
from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.models.randomness import uniform_rows
from divot_lightning.parts.objectives import Objective, Sampler
from divot_lightning.parts.randomness import Randomness

TIME_SCALE = 1000.0
"""Times are 1000 sigma, as the video models of `diffusers` take them."""

TimeSampling = Literal["uniform", "logit_normal"]
Solver = Literal["euler", "dpm_solver", "unipc"]


class RectifiedFlow(Objective):
    """The denoiser predicts the velocity noise - clean on the path (1 - sigma) clean + sigma noise (arXiv:2209.03003).

    Wan, LTX, HunyuanVideo and Mochi were pretrained with it.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ("shift", "solver")

    def __init__(
        self, shift: float = 1.0, time_sampling: TimeSampling = "logit_normal", solver: Solver = "euler"
    ) -> None:
        """Store the settings.

        Args:
            shift: Moves noise levels towards pure noise: sigma becomes shift sigma / (1 + (shift - 1) sigma), in
                training and in sampling (arXiv:2403.03206, section 5.3.2); above 0. Pretrained models have their own,
                in the scheduler's config of their folder.
            time_sampling: Distribution of sigma in training, before the shift: uniform in [0, 1], or the logistic
                function of a standard normal number (arXiv:2403.03206, section 3.1).
            solver: `euler`; or `dpm_solver` (DPM-Solver++) or `unipc`, which need fewer steps, see `multistep`.
        """
        check_solver(solver, "euler")
        if not 0 < shift < math.inf:
            raise UserError(f"objective.shift is {shift}; it must be above 0 (1 is no shift)")
        require_one_of(get_args(TimeSampling), "objective.", time_sampling=time_sampling)
        self.shift, self.time_sampling, self.solver = shift, time_sampling, solver

    def sample_times(
        self, count: int, terminal_timestep_prob: float, *, device: torch.device, generator: Randomness
    ) -> Tensor:
        """Sample times in [0, 1000], float32; see `Objective.sample_times`."""
        sigma_B = uniform_rows(count, generator, device)
        if self.time_sampling == "logit_normal":
            sigma_B = torch.special.ndtri(sigma_B).sigmoid()
        sigma_B = self.shift * sigma_B / (1 + (self.shift - 1) * sigma_B)
        moved = uniform_rows(count, generator, device) < terminal_timestep_prob
        return TIME_SCALE * torch.where(moved, 1.0, sigma_B)

    def add_noise(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return (1 - sigma) clean + sigma noise."""
        sigma = (time_B / TIME_SCALE).view(-1, *[1] * (clean.ndim - 1)).to(clean)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return the velocity noise - clean."""
        return noise - clean

    def sampler(self, steps: int) -> Sampler:
        """Return a sampler with steps that are evenly spaced before the shift; see `Objective.sampler`."""
        require_at_least(1, "sampling.", steps=steps)
        euler = EulerSampler(steps, self.shift)
        if self.solver == "euler":
            return euler
        sigmas = euler.scheduler.sigmas.double().clamp(max=1 - LEAST_SIGNAL**0.5)
        return MultistepSampler(self.solver, euler.times, sigmas, "flow_prediction")


class EulerSampler(Sampler):
    """Euler steps of `FlowMatchEulerDiscreteScheduler`, from pure noise to the clip."""

    def __init__(self, steps: int, shift: float) -> None:
        """Compute the times.

        Args:
            steps: Number of steps, at least 1.
            shift: See `RectifiedFlow`.
        """
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(TIME_SCALE), shift=shift)
        # Given noise levels: with its own, the scheduler applies the shift twice to the last one.
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
        self.times = self.scheduler.timesteps.tolist()

    def step(self, index: int, prediction: Tensor, state: Tensor, sample_noise: Callable[[], Tensor]) -> Tensor:
        """Move the state to the next time; see `Sampler.step`."""
        return self.scheduler.step(prediction, self.scheduler.timesteps[index], state, return_dict=False)[0]
