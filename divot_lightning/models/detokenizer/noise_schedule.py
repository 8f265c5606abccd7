"""Noise schedule and DDIM steps: Stable Diffusion's schedule, rescaled to zero terminal SNR, built on `diffusers`."""

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from divot_lightning.errors import UserError
from divot_lightning.models.randomness import Randomness, integer_rows, uniform_rows


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """Config of the schedule; the defaults are the released sampler's (Divot appendix A.1 and configs).

    Attributes:
        num_steps: Training steps of the diffusion.
        beta_start: First beta; the square roots of the betas are linear in the step.
        beta_end: Last beta, before the rescaling.
        zero_terminal_snr: Rescale the schedule so that the last step is pure noise (Lin et al. 2024, arXiv:2305.08891).
        snr_shift: The signal-to-noise ratio is divided by the square of this number. Small, redundant pictures need
            more noise before the network depends on the condition (Hoogeboom et al. 2023, arXiv:2301.11093); the paper
            has 1.
        prediction: What the network predicts; v in the paper.
    """

    num_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    snr_shift: float = 1.0
    prediction: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"


@dataclass(frozen=True)
class SamplingConfig:
    """Config of the DDIM sampler; the defaults are the released ones.

    Attributes:
        steps: Denoising steps.
        guidance: Scale of the classifier-free guidance against the tokens of an all-zero clip; 1 is no guidance.
        guidance_rescale: How far the contrast of the guided prediction is moved back to that of the conditional one, in
            [0, 1] (arXiv:2305.08891, section 3.4).
        eta: Noise added at each step; 0 is deterministic, 1 is DDPM's.
        spacing: Which training steps are visited; `trailing` starts at the zero-SNR step, `leading` (released) before
            it.
    """

    steps: int = 50
    guidance: float = 7.5
    guidance_rescale: float = 0.7
    eta: float = 1.0
    spacing: Literal["leading", "trailing", "linspace"] = "leading"


def alphas_cumprod(config: NoiseScheduleConfig) -> Tensor:
    """Return the cumulative products of the alphas, (num_steps,) float64, falling to 0 with zero terminal SNR."""
    root = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_steps, dtype=torch.float64)
    alphas = (1.0 - root**2).cumprod(0)
    if config.zero_terminal_snr:
        # Shift the amplitude of the signal to 0 at the last step, and scale it back at the first.
        amplitude = alphas.sqrt()
        alphas = ((amplitude - amplitude[-1]) * amplitude[0] / (amplitude[0] - amplitude[-1])) ** 2
    if config.snr_shift == 1.0:
        return alphas
    # SNR = alpha / (1 - alpha), solved for alpha after dividing the SNR by shift^2.
    return alphas / (alphas + (1.0 - alphas) * config.snr_shift**2)


def check_sampling(schedule: NoiseScheduleConfig, sampling: SamplingConfig) -> None:
    """Refuse to start sampling at a step where the prediction contains nothing of the clip.

    Raises:
        UserError: The network predicts the noise, and sampling starts at a step that is pure noise.
    """
    if schedule.prediction == "epsilon" and schedule.zero_terminal_snr and sampling.spacing != "leading":
        raise UserError(
            f"sampling.spacing {sampling.spacing!r} starts at the zero-SNR step, where prediction 'epsilon' "
            "contains nothing of the clip\n"
            "set spacing to 'leading', the prediction to 'v_prediction' or zero_terminal_snr to false"
        )


def build_scheduler(config: NoiseScheduleConfig, spacing: str = "trailing") -> DDIMScheduler:
    """Build the `diffusers` scheduler that adds noise in training and samples with DDIM."""
    alphas = alphas_cumprod(config)
    previous = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return DDIMScheduler(
        num_train_timesteps=config.num_steps,
        trained_betas=(1.0 - alphas / previous).tolist(),
        prediction_type=config.prediction,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def training_target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timestep_B: Tensor) -> Tensor:
    """Return what the network should predict for a noisy sample, of the sample's shape."""
    prediction = scheduler.config.prediction_type
    if prediction == "v_prediction":
        return scheduler.get_velocity(clean, noise, timestep_B)
    return noise if prediction == "epsilon" else clean


def ddim_step(
    scheduler: DDIMScheduler,
    prediction: Tensor,
    state: Tensor,
    *,
    step: int,
    following: int | None,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Take one step of DDIM (Song et al. 2021, arXiv:2010.02502, equation 12).

    The scheduler's own `step` always goes from t to t - num_steps // steps, even if another step is visited next. Where
    the two differ (linspace spacing; trailing spacing with a number of steps that does not divide num_steps), noise
    remains in the result.

    Args:
        scheduler: Holds the cumulative alphas and the type of the prediction.
        prediction: Output of the network for the state, of the state's shape.
        state: Noisy sample.
        step: Time step of the state.
        following: Time step that is visited next; None after the last one: the result is then the clean sample.
        eta: Standard deviation of the added noise, relative to DDPM's.
        noise: Standard normal, of the state's shape; needed if eta is above 0.

    Returns:
        The sample at the following time step.
    """
    # x_t = sqrt(alpha_t) clean + sqrt(1 - alpha_t) error, with the cumulative alpha here and at the next step.
    here = float(scheduler.alphas_cumprod[step])
    there = 1.0 if following is None else float(scheduler.alphas_cumprod[following])
    signal, spread = here**0.5, (1.0 - here) ** 0.5
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        clean, error = signal * state - spread * prediction, signal * prediction + spread * state
    elif kind == "epsilon":
        clean, error = (state - spread * prediction) / signal, prediction
    else:
        clean, error = prediction, (state - signal * prediction) / spread
    sigma = eta * ((1.0 - there) / (1.0 - here) * (1.0 - here / there)) ** 0.5
    moved = there**0.5 * clean + max(0.0, 1.0 - there - sigma**2) ** 0.5 * error
    return moved if noise is None else moved + sigma * noise


def sample_timesteps(
    count: int, num_steps: int, terminal_timestep_prob: float, *, device: torch.device, generator: Randomness
) -> Tensor:
    """Draw the time steps of a training batch, (count,) int64.

    Args:
        count: Number of time steps.
        num_steps: Time steps are uniform in 0 to num_steps - 1.
        terminal_timestep_prob: Probability that a time step is replaced by the last one, in [0, 1].
        device: Device of the result.
        generator: Random generator on that device, or one per time step on the CPU.
    """
    uniform = integer_rows(num_steps, count, generator, device)
    moved = uniform_rows(count, generator, device) < terminal_timestep_prob
    return torch.where(moved, num_steps - 1, uniform)


def guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float) -> Tensor:
    """Apply classifier-free guidance and move the contrast back (arXiv:2305.08891, equations 14 to 16).

    Args:
        conditional: Prediction with the condition, (B, ...).
        unconditional: Prediction without it, (B, ...).
        scale: Guidance scale; 1 gives the conditional prediction.
        rescale: How far the contrast moves back to that of the conditional prediction, in [0, 1].

    Returns:
        The guided prediction, (B, ...).
    """
    guided = unconditional + scale * (conditional - unconditional)
    axes = tuple(range(1, guided.ndim))
    # An untrained network predicts a constant, so the contrast may be 0.
    contrast = guided.std(axes, keepdim=True).clamp(min=1e-8)
    matched = guided * conditional.std(axes, keepdim=True) / contrast
    return torch.lerp(guided, matched, rescale)
