"""Diffusion in discrete steps on Stable Diffusion's noise schedule, built on `diffusers`; sampled with DDIM by default.

Shape letters: B batch; latents, noise and states have any shape (B, ...).
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from divot_backbones.objectives.multistep import LEAST_SIGNAL, MultistepSampler, check_solver
from divot_lightning.errors import UserError, require_one_of
from divot_lightning.models.ddim import exact_scheduler, take_step
from divot_lightning.models.randomness import integer_rows, uniform_rows
from divot_lightning.parts.objectives import Objective, Sampler
from divot_lightning.parts.randomness import Randomness

Spacing = Literal["leading", "trailing", "linspace"]
BetaSchedule = Literal["scaled_linear", "linear"]
LastStep = Literal["clean", "first_noise_level"]
Solver = Literal["ddim", "dpm_solver", "unipc"]


class DDIMObjective(Objective):
    """Diffusion in `num_steps` steps; subclasses say what is predicted. The defaults are the paper's.

    Source: Divot (arXiv:2412.04432) appendix A.1 and the released sampler.
    """

    prediction: ClassVar[str]
    sampling_settings: ClassVar[tuple[str, ...]] = ("eta", "spacing", "solver")

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        zero_terminal_snr: bool = True,
        snr_shift: float = 1.0,
        beta_schedule: BetaSchedule = "scaled_linear",
        eta: float = 1.0,
        spacing: Spacing = "leading",
        last_step: LastStep = "clean",
        half_precision_schedule: bool = False,
        solver: Solver = "ddim",
    ) -> None:
        """Compute the noise schedule.

        Args:
            num_steps: Steps of the diffusion.
            beta_start: First beta.
            beta_end: Last beta, before the rescaling.
            zero_terminal_snr: Rescale the schedule so that the last step is pure noise (arXiv:2305.08891).
            snr_shift: The signal-to-noise ratio is divided by the square of this number. Small, redundant pictures need
                more noise before the network depends on the condition (arXiv:2301.11093); the paper has 1.
            beta_schedule: "scaled_linear": the square roots of the betas are linear in the step, as in Stable
                Diffusion. "linear": the betas are, as in Latte's pretraining, from 0.0001 to 0.02.
            eta: Noise that each step of DDIM adds; 0 is deterministic, 1 is DDPM's. The other solvers add none.
            spacing: Steps that the sampler visits; `trailing` starts at the last one, `leading` (released) before it.
            last_step: Where the sampler's last step ends: at the clean latents, or, as released, at the noise level of
                the first step of the diffusion, whose standard deviation is 0.03 with the paper's betas.
            half_precision_schedule: Round the sampler's cumulative alphas to float16, as released.
            solver: `ddim`; or `dpm_solver` (DPM-Solver++) or `unipc`, which need fewer steps, see `multistep`.
        """
        check_solver(solver, "ddim")
        self.num_steps, self.eta, self.spacing = num_steps, eta, spacing
        self.last_step, self.half_precision_schedule, self.solver = last_step, half_precision_schedule, solver
        require_one_of(get_args(BetaSchedule), "objective.", beta_schedule=beta_schedule)
        betas = schedule_betas(num_steps, beta_start, beta_end, beta_schedule)
        alphas = alphas_cumprod(betas, zero_terminal_snr=zero_terminal_snr, shift=snr_shift)
        self.scheduler = _training_scheduler(alphas, self.prediction, spacing)

    def sample_times(
        self, count: int, terminal_timestep_prob: float, *, device: torch.device, generator: Randomness
    ) -> Tensor:
        """Sample steps, uniform in 0 to num_steps - 1, int64; see `Objective.sample_times`."""
        uniform = integer_rows(self.num_steps, count, generator, device)
        moved = uniform_rows(count, generator, device) < terminal_timestep_prob
        return torch.where(moved, self.num_steps - 1, uniform)

    def add_noise(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return sqrt(alpha) clean + sqrt(1 - alpha) noise, with the cumulative alpha of each step."""
        return self.scheduler.add_noise(clean, noise, time_B)

    def sampler(self, steps: int) -> Sampler:
        """Return a sampler with the chosen solver; see `Objective.sampler`."""
        if not 1 <= steps <= self.num_steps:
            raise UserError(f"sampling.steps is {steps}; give 1 to {self.num_steps}, the objective's num_steps")
        self.scheduler.set_timesteps(steps)
        alphas = self.scheduler.alphas_cumprod
        if self.half_precision_schedule:
            alphas = alphas.half().to(alphas.dtype)
        final_alpha = 1.0 if self.last_step == "clean" else float(alphas[0])
        times = self.scheduler.timesteps.tolist()
        if self.solver == "ddim":
            return DDIMSampler(alphas, times, self.prediction, self.eta, final_alpha)
        visited = torch.cat([alphas[times].double().clamp(min=LEAST_SIGNAL), torch.tensor([final_alpha])])
        return MultistepSampler(self.solver, times, ((1 - visited) / visited).sqrt(), self.prediction)


class VPrediction(DDIMObjective):
    """The denoiser predicts the velocity sqrt(alpha) noise - sqrt(1 - alpha) clean, as in the paper."""

    prediction = "v_prediction"

    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return the velocity."""
        return self.scheduler.get_velocity(clean, noise, time_B)


class Epsilon(DDIMObjective):
    """The denoiser predicts the noise; it must not be sampled from a step that is pure noise."""

    prediction = "epsilon"

    def __init__(
        self,
        num_steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        zero_terminal_snr: bool = False,
        snr_shift: float = 1.0,
        beta_schedule: BetaSchedule = "scaled_linear",
        eta: float = 1.0,
        spacing: Spacing = "leading",
        last_step: LastStep = "clean",
        half_precision_schedule: bool = False,
        solver: Solver = "ddim",
    ) -> None:
        """Compute the noise schedule: Stable Diffusion's, without the rescaling; see `DDIMObjective`.

        Raises:
            UserError: Sampling would start at a step where the prediction contains nothing of the clip.
        """
        if zero_terminal_snr and spacing != "leading":
            raise UserError(
                f"objective.spacing {spacing!r} starts at the zero-SNR step, where a prediction of the noise contains "
                "nothing of the clip\nset spacing to leading, zero_terminal_snr to false, or choose v_prediction"
            )
        super().__init__(
            num_steps,
            beta_start,
            beta_end,
            zero_terminal_snr,
            snr_shift,
            beta_schedule,
            eta,
            spacing,
            last_step,
            half_precision_schedule,
            solver,
        )

    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return the noise."""
        return noise


class X0(DDIMObjective):
    """The denoiser predicts the clean latents."""

    prediction = "sample"

    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return the clean latents."""
        return clean


class DDIMSampler(Sampler):
    """DDIM (arXiv:2010.02502, equation 12) over any falling list of steps.

    Args:
        alphas_cumprod: Cumulative alphas of all steps.
        times: The steps to visit.
        prediction: What the denoiser predicts, in the words of `diffusers`.
        eta: Noise that each step adds.
        final_alpha: Cumulative alpha at which the last step ends.
    """

    def __init__(
        self, alphas_cumprod: Tensor, times: list[int], prediction: str, eta: float, final_alpha: float = 1.0
    ) -> None:
        self.times = times
        self.eta = eta
        self.scheduler = exact_scheduler(alphas_cumprod, times, prediction, final_alpha)

    def step(self, index: int, prediction: Tensor, state: Tensor, sample_noise: Callable[[], Tensor]) -> Tensor:
        """Move the state to the next time; see `Sampler.step`."""
        return take_step(self.scheduler, index, prediction, state, self.eta, sample_noise() if self.eta > 0 else None)


def schedule_betas(num_steps: int, beta_start: float, beta_end: float, schedule: BetaSchedule) -> Tensor:
    """Return the betas, (num_steps,) float64; see `DDIMObjective`."""
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    return torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2


def alphas_cumprod(betas: Tensor, *, zero_terminal_snr: bool, shift: float) -> Tensor:
    """Return the cumulative products of the alphas, (num_steps,) float64, falling to 0 with zero terminal SNR."""
    alphas = (1.0 - betas).cumprod(0)
    if zero_terminal_snr:
        # Shift the amplitude of the signal to 0 at the last step, and scale it back at the first.
        amplitude = alphas.sqrt()
        alphas = ((amplitude - amplitude[-1]) * amplitude[0] / (amplitude[0] - amplitude[-1])) ** 2
    if shift == 1.0:
        return alphas
    # SNR = alpha / (1 - alpha), solved for alpha after dividing the SNR by shift^2.
    return alphas / (alphas + (1.0 - alphas) * shift**2)


def _training_scheduler(alphas: Tensor, prediction: str, spacing: str) -> Any:
    previous = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return DDIMScheduler(
        num_train_timesteps=len(alphas),
        trained_betas=(1.0 - alphas / previous).tolist(),
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
    )
