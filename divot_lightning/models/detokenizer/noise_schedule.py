"""The noise schedule: Stable Diffusion's, rescaled to zero terminal SNR, driven by `diffusers`' schedulers."""

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from divot_lightning.errors import UserError
from divot_lightning.models.randomness import Randomness, integer_rows, uniform_rows


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """Settings of the schedule; the defaults are the released sampler's (Divot appendix A.1 and configs).

    Attributes:
        num_steps: Training steps of the diffusion.
        beta_start: First beta; betas are linear in their square roots.
        beta_end: Last beta, before the rescaling.
        zero_terminal_snr: Rescales so that the last step is pure noise (Lin et al. 2024, arXiv:2305.08891).
        snr_shift: Divides the signal-to-noise ratio by its square. Small, redundant pictures need more noise before
            anything has to be drawn from the condition (Hoogeboom et al. 2023, arXiv:2301.11093); 1 is the paper's.
        prediction: What the network gives; the paper trains v-prediction.
    """

    num_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = True
    snr_shift: float = 1.0
    prediction: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the DDIM sampler; the defaults are the released ones.

    Attributes:
        steps: Denoising steps.
        guidance: Scale of the classifier-free guidance against the tokens of an all-zero clip; 1 is without.
        guidance_rescale: Share by which the guided prediction's contrast is set back to the conditional one's
            (arXiv:2305.08891, section 3.4).
        eta: Noise added at each step; 0 is deterministic, 1 is DDPM's.
        spacing: Which training steps are visited; `trailing` starts at the zero-SNR step, `leading` (released) below.
    """

    steps: int = 50
    guidance: float = 7.5
    guidance_rescale: float = 0.7
    eta: float = 1.0
    spacing: Literal["leading", "trailing", "linspace"] = "leading"


def alphas_cumprod(config: NoiseScheduleConfig) -> Tensor:
    """Return the cumulative products of the alphas, (num_steps,) float64, falling to 0 with zero terminal SNR."""
    root = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_steps, dtype=torch.float64)
    shares = (1.0 - root**2).cumprod(0)
    if config.zero_terminal_snr:
        amplitude = shares.sqrt()
        shares = ((amplitude - amplitude[-1]) * amplitude[0] / (amplitude[0] - amplitude[-1])) ** 2
    if config.snr_shift == 1.0:
        return shares
    # SNR = share / (1 - share), solved for the share after dividing the SNR by shift^2.
    return shares / (shares + (1.0 - shares) * config.snr_shift**2)


def check_sampling(schedule: NoiseScheduleConfig, sampling: SamplingConfig) -> None:
    """Refuse to sample from where the prediction says nothing about the clip.

    Raises:
        UserError: The noise is predicted and sampling starts at a step that is nothing but noise.
    """
    if schedule.prediction == "epsilon" and schedule.zero_terminal_snr and sampling.spacing != "leading":
        raise UserError(
            f"sampling.spacing {sampling.spacing!r} starts at the zero-SNR step, where prediction 'epsilon' says "
            "nothing about the clip\n"
            "set spacing to 'leading', the prediction to 'v_prediction' or zero_terminal_snr to false"
        )


def build_scheduler(config: NoiseScheduleConfig, spacing: str = "trailing") -> DDIMScheduler:
    """Build the `diffusers` scheduler that adds noise in training and samples with DDIM."""
    shares = alphas_cumprod(config)
    previous = torch.cat([torch.ones(1, dtype=shares.dtype), shares[:-1]])
    return DDIMScheduler(
        num_train_timesteps=config.num_steps,
        trained_betas=(1.0 - shares / previous).tolist(),
        prediction_type=config.prediction,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def training_target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timestep_B: Tensor) -> Tensor:
    """Return what the network has to give for a noisy sample, of the sample's shape."""
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
    """Go one step of DDIM (Song et al. 2021, arXiv:2010.02502, equation 12).

    The scheduler's own `step` goes from t to t - num_steps // steps, whichever step is visited next. Where the two
    differ (linspace; trailing steps whose number does not divide num_steps) it leaves noise behind.

    Args:
        scheduler: Knows the signal shares and what the network predicts.
        prediction: What the network gives for the state.
        state: Noisy sample.
        step: The state's time.
        following: The time that is visited next; none after the last one, which gives the clean sample.
        eta: Noise added, as a share of DDPM's.
        noise: Standard normal, of the state's shape; needed with eta above 0.

    Returns:
        The sample at the following time.
    """
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
    """Draw training times, (count,) int64.

    Args:
        count: How many.
        num_steps: Times are 0 to num_steps - 1, uniformly.
        terminal_timestep_prob: Share of draws that are moved to the last time, in [0, 1].
        device: Where to.
        generator: Source of randomness on that device, or one per draw on the CPU.
    """
    uniform = integer_rows(num_steps, count, generator, device)
    moved = uniform_rows(count, generator, device) < terminal_timestep_prob
    return torch.where(moved, num_steps - 1, uniform)


def guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float) -> Tensor:
    """Apply classifier-free guidance and sets part of the contrast back (arXiv:2305.08891, equations 14 to 16).

    Args:
        conditional: Prediction with the condition, (B, ...).
        unconditional: Prediction without it, (B, ...).
        scale: Guidance scale; 1 gives the conditional prediction.
        rescale: Share of the contrast that is set back, in [0, 1].
    """
    guided = unconditional + scale * (conditional - unconditional)
    axes = tuple(range(1, guided.ndim))
    # An untrained network predicts the same everywhere, without any contrast.
    contrast = guided.std(axes, keepdim=True).clamp(min=1e-8)
    matched = guided * conditional.std(axes, keepdim=True) / contrast
    return torch.lerp(guided, matched, rescale)
