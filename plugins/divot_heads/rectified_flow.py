"""Rectified flow (arXiv:2209.03003): straight lines from features to noise, and the velocity along them.

With features x and noise e the line is x_s = (1 - s) x + s e, from s = 0 (features) to s = 1 (noise); its velocity
dx_s/ds is e - x. A network that regresses it learns v(x_s, s) = E[e - x | x_s]. The differential equation dx/ds = v,
followed from s = 1 to s = 0, turns noise into features. Times as in the objective `rectified_flow` of de-tokenizers.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from divot_heads.guidance import ConditionDropout, guided
from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.parts.heads import GenerationHead

TIME_SCALE = 1000.0
"""Times are embedded as 1000 s, the range that the frequencies of the embedding were made for."""

TimeSampling = Literal["logit_normal", "uniform"]
Solver = Literal["euler", "midpoint"]


def check_flow_settings(time_sampling: str, solver: str, sampling_steps: int, shift: float) -> None:
    """Refuse values that are not allowed.

    Raises:
        UserError: A setting is unknown or out of range.
    """
    require_one_of(get_args(TimeSampling), time_sampling=time_sampling)
    require_one_of(get_args(Solver), solver=solver)
    require_at_least(1, sampling_steps=sampling_steps)
    if not 0 < shift < math.inf:
        raise UserError(f"shift={shift} is not allowed; it must be above 0 (1 is no shift)")


def sample_times(count: int, time_sampling: TimeSampling, device: torch.device) -> Tensor:
    """Sample times in [0, 1], (count,) float32: uniform, or the logistic function of a standard normal number.

    The second prefers the middle, where the velocity is hardest to learn (arXiv:2403.03206, section 3.1).
    """
    if time_sampling == "uniform":
        return torch.rand(count, device=device)
    return torch.randn(count, device=device).sigmoid()


def falling_times(steps: int, shift: float) -> list[float]:
    """Return `steps` + 1 times from 1 to 0: s = shift u / (1 + (shift - 1) u) for evenly spaced u.

    A shift above 1 takes more of the steps near the noise (arXiv:2403.03206, section 5.3.2).

    >>> falling_times(2, 1.0), falling_times(2, 3.0)
    ([1.0, 0.5, 0.0], [1.0, 0.75, 0.0])
    """
    even = [left / steps for left in range(steps, -1, -1)]
    return [shift * u / (1 + (shift - 1) * u) for u in even]


class RectifiedFlowHead(GenerationHead):
    """Base of heads whose denoiser predicts the velocity from a state, the time of each row and a condition.

    A subclass builds `denoiser`, which takes times from 0 to `TIME_SCALE`, and `condition_dropout`, and has the loss.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ("sampling_steps", "solver", "guidance", "shift")
    denoiser: nn.Module
    condition_dropout: ConditionDropout | None

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        time_sampling: TimeSampling,
        sampling_steps: int,
        solver: Solver,
        guidance: float,
        shift: float,
    ) -> None:
        """Check and keep the settings, which subclasses describe."""
        super().__init__(hidden_dim, feature_dim)
        check_flow_settings(time_sampling, solver, sampling_steps, shift)
        self.time_sampling: TimeSampling = time_sampling
        self.sampling_steps = sampling_steps
        self.solver: Solver = solver
        self.guidance = guidance
        self.shift = shift

    def flow(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Follow the predicted velocity from noise to features, by the sampling settings.

        Args:
            noise: State at time 1, float.
            condition: Of each row.

        Returns:
            Features of the shape of the noise.
        """

        def velocity(state: Tensor, time: float) -> Tensor:
            time_N = torch.full((len(state),), TIME_SCALE * time, device=state.device)
            return guided(partial(self.denoiser, state, time_N), condition, self.condition_dropout, self.guidance)

        return integrate(velocity, noise, falling_times(self.sampling_steps, self.shift), self.solver)


def integrate(
    velocity: Callable[[Tensor, float], Tensor], noise: Tensor, times: Sequence[float], solver: Solver
) -> Tensor:
    """Follow dx/ds = velocity(x, s) from noise to features.

    Args:
        velocity: Takes the state and the time.
        noise: State at the first time.
        times: From `falling_times`.
        solver: "euler" takes one evaluation of the velocity per step; "midpoint" two, with an error that falls with
            the square of the step size.

    Returns:
        The state at the last time.
    """
    state = noise
    for now, after in pairwise(times):
        slope = velocity(state, now)
        if solver == "midpoint":
            slope = velocity(state + 0.5 * (after - now) * slope, 0.5 * (now + after))
        state = state + (after - now) * slope
    return state
