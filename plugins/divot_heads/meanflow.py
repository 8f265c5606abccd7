"""MeanFlow: the average velocity of a flow, which samples in one step (arXiv:2505.13447).

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, N rows (tokens times noise draws).
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from divot_heads.denoiser import MLPDenoiser
from divot_heads.draws import mean_of_draws, rows_of_draws
from divot_heads.rectified_flow import TimeSampling, check_flow_settings, falling_times
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean

TIME_SCALE = 10.0
"""Times are embedded as 10 t. The loss needs the derivative with respect to t; the usual 1000 t makes it huge and
noisy (arXiv:2410.11081, section 4.1)."""
WEIGHT_FLOOR = 1e-3
"""Added to the squared error before its power weighs the loss; as in the paper, section 4.3."""


class MeanFlowHead(GenerationHead):
    """Average velocity of the flow of each token: samples in one evaluation (MeanFlow, arXiv:2505.13447).

    On the line z_t = (1 - t) x + t e from features x to noise e, with the velocity v = e - x, the average velocity from
    r to t is u(z_t, r, t) = (1 / (t - r)) integral_r^t v. Its derivative along the line gives the identity
    u = v - (t - r) du/dt (`regression_target`), whose right side is the target of a regression. One step samples:
    x = e - u(e, 0, 1). The loss of a token, d = |u - target|^2 / C, is weighted by 1 / (d + 0.001)^p, without
    gradient; so with p = 1, the paper's, its value stays near 1 and says little about how well the head has learnt.
    (The paper sums over the dimensions; the mean makes the weight independent of C.) The denoiser is that of
    `DiffusionHead`; tokens are sampled independently of each other. There is no guidance: in MeanFlow it would be a
    setting of training.

    Three defaults differ from the paper: its `interval_fraction` is 0.25, its `time_sampling` "logit_normal", its
    `weight_power` 1. With these, samples in one step were farther from a mixture of two Gaussians (C = 2, 500 steps)
    than one Gaussian is: energy distance 0.29 against 0.17; with our defaults it is 0.05. There are two causes, and to
    remove one alone made it worse (one seed each). A power of 1 makes the loss log(d + 0.001), whose minimum lies near
    a mode of the targets, not at their mean: four steps gave 0.048, with a power of 0 0.007. And one step needs
    u(e, 0, 1), while logit-normal times are hardly ever so far apart: with a power of 0 alone one step gave 0.16.
    One difference is no setting: rows without an interval have one sampled time, while public code
    (zhuyu-cs/MeanFlow, loss.py) gives them the larger of two, which prefers noise.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ("sampling_steps",)

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        width: int = 1024,
        depth: int = 3,
        draws_per_token: int = 4,
        interval_fraction: float = 0.5,
        time_sampling: TimeSampling = "uniform",
        time_mean: float = -0.4,
        time_std: float = 1.0,
        weight_power: float = 0.0,
        sampling_steps: int = 1,
    ) -> None:
        """Build the denoiser.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
            width: Width of the denoiser, even.
            depth: Residual blocks of the denoiser.
            draws_per_token: Draws of noise and times per token and loss.
            interval_fraction: Fraction of the rows with r < t, 0 to 1; the others have r = t and learn the velocity
                itself. 0.25 in the paper.
            time_sampling: Distribution of the times in training: "uniform", or "logit_normal" as in the paper.
            time_mean: Of "logit_normal": mean of the normal number whose logistic function is a time; the paper's for
                ImageNet.
            time_std: Its standard deviation, at least 0; the paper's for ImageNet.
            weight_power: p, at least 0; 0 is the plain squared error, whose minimum is the mean. 1 in the paper.
            sampling_steps: Evaluations per sample; each goes an equal part of the way.
        """
        super().__init__(hidden_dim, feature_dim)
        require_at_least(1, width=width, depth=depth, draws_per_token=draws_per_token, sampling_steps=sampling_steps)
        require_at_least(0, interval_fraction=interval_fraction, time_std=time_std, weight_power=weight_power)
        check_flow_settings(time_sampling, "euler", sampling_steps, shift=1.0)
        if interval_fraction > 1:
            raise UserError(f"interval_fraction={interval_fraction} is not allowed; give 0 to 1")
        self.draws_per_token = draws_per_token
        self.interval_fraction = interval_fraction
        self.time_sampling = time_sampling
        self.time_mean = time_mean
        self.time_std = time_std
        self.weight_power = weight_power
        self.sampling_steps = sampling_steps
        self.average_velocity = AverageVelocity(feature_dim, hidden_dim, width, depth)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the weighted error of the average velocity over C, draws and tokens; see `GenerationHead.loss`."""
        clean_NC = rows_of_draws(clear_masked(target_BQC, mask_BQ), self.draws_per_token)
        condition_ND = rows_of_draws(clear_masked(hidden_BQD, mask_BQ), self.draws_per_token)
        noise_NC = torch.randn_like(clean_NC)
        start_N, end_N = self._draw_interval(clean_NC)
        noisy_NC = torch.lerp(clean_NC, noise_NC, end_N.unsqueeze(-1))
        average_NC, target_NC = self.average_velocity(noisy_NC, start_N, end_N, condition_ND, noise_NC - clean_NC)
        squared_N = (average_NC - target_NC).square().mean(dim=-1)
        weighted_N = squared_N / (squared_N.detach() + WEIGHT_FLOOR) ** self.weight_power
        error_BQ = mean_of_draws(weighted_N, target_BQC, self.draws_per_token)
        return masked_mean(error_BQ, mask_BQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Jump from noise, which `temperature` multiplies, to features_BQC, float32, in `sampling_steps` jumps."""
        condition_ND = hidden_BQD.flatten(0, -2)
        shape = (len(condition_ND), self.feature_dim)
        state_NC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        for end, start in pairwise(falling_times(self.sampling_steps, shift=1.0)):
            start_N, end_N = (torch.full((len(state_NC),), time, device=state_NC.device) for time in (start, end))
            average_NC, _ = self.average_velocity(state_NC, start_N, end_N, condition_ND)
            state_NC = state_NC - (end - start) * average_NC
        return state_NC.view(*hidden_BQD.shape[:-1], self.feature_dim)

    def _draw_interval(self, like_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return start r and end t of an interval per row, 0 <= r <= t <= 1."""
        if self.time_sampling == "uniform":
            times_2N = torch.rand(2, len(like_NC), device=like_NC.device)
        else:
            normal_2N = torch.randn(2, len(like_NC), device=like_NC.device)
            times_2N = (self.time_mean + self.time_std * normal_2N).sigmoid()
        start_N, end_N = times_2N.amin(dim=0), times_2N.amax(dim=0)
        is_interval_N = torch.rand_like(end_N) < self.interval_fraction
        # Without an interval t is the first sample, not the larger of two, which would prefer noise.
        end_N = torch.where(is_interval_N, end_N, times_2N[0])
        return torch.where(is_interval_N, start_N, end_N), end_N


class AverageVelocity(nn.Module):
    """An `MLPDenoiser` of two times, and its regression target.

    The derivative must be taken inside of one call: ZeRO-3 gathers parameters in hooks around the call of a module,
    and these hooks cannot be differentiated forward. So all parameters are this module's own, and its network, which
    is no submodule, is called with them as a function.
    """

    network: nn.Module

    def __init__(self, feature_dim: int, condition_dim: int, width: int, depth: int) -> None:
        """Build the network.

        Args:
            feature_dim: C.
            condition_dim: D.
            width: Width of the network, even.
            depth: Number of residual blocks.
        """
        super().__init__()
        network = MLPDenoiser(feature_dim, condition_dim, width, depth, two_times=True, linear=MatmulLinear)
        self.names = {name.replace(".", "_"): name for name, _ in network.named_parameters()}
        for name, dotted in self.names.items():
            self.register_parameter(name, network.get_parameter(dotted))
        object.__setattr__(self, "network", network)

    def forward(
        self,
        state_NC: Tensor,
        start_N: Tensor,
        end_N: Tensor,
        condition_ND: Tensor,
        velocity_NC: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return u(z, r, t, h), and `regression_target`, without gradient, if the velocity of the line is given."""
        average_NC = self._network(condition_ND, state_NC, start_N, end_N)
        if velocity_NC is None:
            return average_NC, None
        with torch.no_grad():
            network = partial(self._network, condition_ND.detach())
            return average_NC, regression_target(network, state_NC, start_N, end_N, velocity_NC)

    def _network(self, condition_ND: Tensor, state_NC: Tensor, start_N: Tensor, end_N: Tensor) -> Tensor:
        # Not get_parameter: under force_float32 they may be float32 copies, which are plain tensors.
        parameters: dict[str, Tensor] = {dotted: getattr(self, name) for name, dotted in self.names.items()}
        times = TIME_SCALE * end_N, TIME_SCALE * (end_N - start_N)
        return torch.func.functional_call(self.network, parameters, (state_NC, times[0], condition_ND, times[1]))


class MatmulLinear(nn.Linear):
    """A linear layer of its own operations: `nn.functional.linear` is replaced under ZeRO-3."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs W^T + b."""
        return inputs @ self.weight.T + self.bias


def regression_target(
    average_velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    state_NC: Tensor,
    start_N: Tensor,
    end_N: Tensor,
    velocity_NC: Tensor,
) -> Tensor:
    """Return v - (t - r) du/dt, where du/dt = v du/dz + du/dt at fixed r: the derivative along the line.

    Args:
        average_velocity: u(z, r, t).
        state_NC: z at time t.
        start_N: r.
        end_N: t.
        velocity_NC: v, the velocity of the line.

    Returns:
        target_NC.

    >>> r, t, z, v = torch.zeros(1), torch.ones(1), torch.ones(1, 1), torch.ones(1, 1)
    >>> regression_target(lambda z, r, t: 3 * z, z, r, t, v).item()  # 1 - (1 - 0) * 3
    -2.0
    """
    tangents = (velocity_NC, torch.zeros_like(start_N), torch.ones_like(end_N))
    change_NC = torch.func.jvp(average_velocity, (state_NC, start_N, end_N), tangents)[1]
    return velocity_NC - (end_N - start_N).unsqueeze(-1) * change_NC
