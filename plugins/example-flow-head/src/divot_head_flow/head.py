"""Flow matching over the tokens of a clip, jointly.

Shape letters: B batch, R noise draws per clip, Q tokens of one clip, D LLM width, C feature width.
"""

from typing import ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor

from divot_head_flow.transformer import TokenTransformer
from divot_lightning.errors import UserError
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean

Times = Literal["logit_normal", "uniform"]
Solver = Literal["euler", "midpoint"]


class FlowHead(GenerationHead):
    """Rectified flow from noise to features along straight lines, for all tokens of a clip together.

    A transformer that attends to the whole clip learns the velocity of the line from noise to features
    (arXiv:2209.03003). A head that samples each token by itself gives tokens that do not fit together if they depend on
    something common, such as the position of an object; the tokens of this head agree. With
    `generation_mode: autoregressive` it gets one token at a time and samples it by itself.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ("sampling_steps", "solver")

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        width: int = 128,
        depth: int = 3,
        num_attention_heads: int = 4,
        draws_per_clip: int = 2,
        times: Times = "logit_normal",
        sampling_steps: int = 20,
        solver: Solver = "midpoint",
    ) -> None:
        """Build the transformer.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
            width: Width of the transformer, a multiple of `num_attention_heads` and even.
            depth: Blocks of the transformer.
            num_attention_heads: Attention heads of each block.
            draws_per_clip: Noise and time draws per clip and loss; more make the gradient less noisy and cost time in
                the head only.
            times: Distribution of the times in training; "logit_normal" prefers the middle (arXiv:2403.03206,
                section 3.1).
            sampling_steps: Evaluations of the transformer per sample; "midpoint" takes two for each of its steps.
            solver: How sampling integrates the velocity.
        """
        super().__init__(hidden_dim, feature_dim)
        _check("times", times, get_args(Times))
        _check("solver", solver, get_args(Solver))
        if width % (2 * num_attention_heads):
            raise UserError(f"width={width} is not allowed; give a multiple of {2 * num_attention_heads}")
        if draws_per_clip < 1:
            raise UserError(f"draws_per_clip={draws_per_clip} is not allowed; give 1 or more")
        if sampling_steps < 2:
            raise UserError(f"sampling_steps={sampling_steps} is not allowed; give 2 or more")
        self.draws_per_clip = draws_per_clip
        self.times = times
        self.sampling_steps = sampling_steps
        self.solver = solver
        self.transformer = TokenTransformer(feature_dim, hidden_dim, width, depth, num_attention_heads)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the mean squared error of the velocity over C, draws and tokens; see `GenerationHead.loss`."""
        condition_BQW = self.transformer.condition(clear_masked(hidden_BQD, mask_BQ))
        errors_RBQ = [
            self._velocity_error(condition_BQW, clear_masked(target_BQC, mask_BQ), mask_BQ)
            for _ in range(self.draws_per_clip)
        ]
        return masked_mean(torch.stack(errors_RBQ).mean(dim=0), mask_BQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Integrate the velocity from noise (time 0) to features (time 1).

        Args:
            hidden_BQD: Hidden states at the queries.
            temperature: Multiplies the noise that sampling starts from; no noise is added later.
            generator: Random generator on the device of `hidden_BQD`.

        Returns:
            features_BQC, float32.
        """
        condition_BQW = self.transformer.condition(hidden_BQD)
        shape = (*hidden_BQD.shape[:-1], self.feature_dim)
        features_BQC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        num_steps = self.sampling_steps // (2 if self.solver == "midpoint" else 1)
        size = 1.0 / num_steps
        for step in range(num_steps):
            velocity_BQC = self._velocity(features_BQC, step * size, condition_BQW)
            if self.solver == "midpoint":
                middle_BQC = features_BQC + 0.5 * size * velocity_BQC
                velocity_BQC = self._velocity(middle_BQC, (step + 0.5) * size, condition_BQW)
            features_BQC = features_BQC + size * velocity_BQC
        return features_BQC

    def _velocity_error(self, condition_BQW: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None) -> Tensor:
        """Return the squared error per token at one random time per clip."""
        time_B = torch.randn(len(target_BQC), device=target_BQC.device)
        time_B = time_B.sigmoid() if self.times == "logit_normal" else torch.rand_like(time_B)
        noise_BQC = torch.randn_like(target_BQC)
        noisy_BQC = torch.lerp(noise_BQC, target_BQC, time_B[:, None, None])
        velocity_BQC = self.transformer(noisy_BQC, time_B, condition_BQW, mask_BQ)
        return (velocity_BQC - (target_BQC - noise_BQC)).square().mean(dim=-1)

    def _velocity(self, features_BQC: Tensor, time: float, condition_BQW: Tensor) -> Tensor:
        time_B = torch.full((len(features_BQC),), time, device=features_BQC.device)
        velocity_BQC: Tensor = self.transformer(features_BQC, time_B, condition_BQW)
        return velocity_BQC


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r} is not allowed; choose one of: {', '.join(allowed)}")
