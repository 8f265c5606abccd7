"""Solvers that use earlier predictions too, with the steps of `diffusers`: DPM-Solver++ and UniPC, of second order.

They add no noise, and need fewer steps than DDIM or Euler for the same clip.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from divot_lightning.errors import require_one_of
from divot_lightning.parts.objectives import Sampler

Multistep: TypeAlias = Literal["dpm_solver", "unipc"]

SCHEDULERS: dict[str, Any] = {"dpm_solver": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}

LEAST_SIGNAL = 2.0**-24
"""Least power of the signal at a step, as in `diffusers`: the solvers use the logarithm of the signal-to-noise ratio,
which pure noise does not have."""


class MultistepSampler(Sampler):
    """DPM-Solver++ (arXiv:2211.01095) or UniPC (arXiv:2302.04867) over any falling list of noise levels."""

    def __init__(self, solver: Multistep, times: Sequence[float], sigmas: Tensor, prediction: str) -> None:
        """Build the solver.

        Args:
            solver: Which one.
            times: The times to visit.
            sigmas: Noise level at each time and after the last step, in the words of `diffusers`: noise / signal, or
                for `flow_prediction` the fraction of noise.
            prediction: `v_prediction`, `epsilon`, `sample` or `flow_prediction`.
        """
        self.times = times
        self.scheduler = SCHEDULERS[solver](
            prediction_type=prediction, use_flow_sigmas=prediction == "flow_prediction", solver_order=2
        )
        self.scheduler.set_timesteps(len(times))
        # The scheduler would choose other steps than the objective; it reads nothing but these and an index.
        self.scheduler.sigmas = sigmas.float().cpu()
        self.scheduler.set_begin_index(0)

    def step(self, index: int, prediction: Tensor, state: Tensor, sample_noise: Callable[[], Tensor]) -> Tensor:
        """Move the state to the next time; steps must be taken in order. See `Sampler.step`."""
        return self.scheduler.step(prediction, self.times[index], state, return_dict=False)[0]


def check_solver(solver: str, own: str) -> None:
    """Refuse a solver that an objective does not have; `own` is its single-step solver."""
    require_one_of((own, *SCHEDULERS), "objective.", solver=solver)
