"""Rectified flow over all tokens of a clip together, with guidance.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, N clips times noise draws.
"""

import torch
from torch import Generator, Tensor

from divot_heads.clip_transformer import ClipTransformer, check_width
from divot_heads.guidance import condition_dropout_or_none
from divot_heads.rectified_flow import TIME_SCALE, RectifiedFlowHead, Solver, TimeSampling, sample_times
from divot_lightning.errors import require_at_least
from divot_lightning.parts.heads import clear_masked, force_float32, masked_mean


class FlowClipHead(RectifiedFlowHead):
    """Rectified flow of all tokens of a clip together, so that sampled tokens fit each other.

    The loss is that of `FlowTokenHead`, with one time s per clip and a transformer that sees all noisy tokens. With
    `generation_mode: autoregressive` a clip is one token, and tokens are sampled by themselves. The size is our choice.
    """

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        width: int = 512,
        depth: int = 4,
        num_attention_heads: int = 8,
        draws_per_clip: int = 2,
        time_sampling: TimeSampling = "logit_normal",
        condition_dropout: float = 0.1,
        sampling_steps: int = 20,
        solver: Solver = "midpoint",
        guidance: float = 1.0,
        shift: float = 1.0,
    ) -> None:
        """Build the transformer.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
            width: Width of the transformer, even, a multiple of `num_attention_heads`.
            depth: Blocks of the transformer.
            num_attention_heads: Attention heads of each block.
            draws_per_clip: Draws of noise and time per clip and loss.
            time_sampling: Distribution of the times in training.
            condition_dropout: Probability that a clip is trained without its hidden states, 0 to below 1.
            sampling_steps: Steps per sample; "midpoint" takes two evaluations of the transformer for each.
            solver: How sampling integrates the velocity.
            guidance: Guidance scale of sampling; 1 samples the learnt distribution, above 1 exaggerates the condition.
            shift: Above 1 takes more of the steps near the noise; see `falling_times`.
        """
        super().__init__(hidden_dim, feature_dim, time_sampling, sampling_steps, solver, guidance, shift)
        require_at_least(
            1, width=width, depth=depth, num_attention_heads=num_attention_heads, draws_per_clip=draws_per_clip
        )
        check_width(width, num_attention_heads)
        self.draws_per_clip = draws_per_clip
        self.denoiser = ClipTransformer(feature_dim, hidden_dim, width, depth, num_attention_heads)
        self.condition_dropout = condition_dropout_or_none(hidden_dim, condition_dropout, guidance)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the mean squared error of the velocity over C, draws and tokens; see `GenerationHead.loss`."""
        draws = (self.draws_per_clip, 1, 1)
        mask_NQ = None if mask_BQ is None else mask_BQ.repeat(draws[:2])
        clean_NQC = clear_masked(target_BQC, mask_BQ).repeat(draws)
        hidden_NQD = clear_masked(hidden_BQD, mask_BQ).repeat(draws)
        if self.condition_dropout is not None:
            hidden_NQD = self.condition_dropout(hidden_NQD)
        noise_NQC = torch.randn_like(clean_NQC)
        time_N = sample_times(len(clean_NQC), self.time_sampling, clean_NQC.device)
        noisy_NQC = torch.lerp(clean_NQC, noise_NQC, time_N[:, None, None])
        error_NQC = self.denoiser(noisy_NQC, TIME_SCALE * time_N, hidden_NQD, mask_NQ) - (noise_NQC - clean_NQC)
        return masked_mean(error_NQC.square().mean(dim=-1), mask_NQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Follow the velocity from noise, which `temperature` multiplies, to features_BQC, float32."""
        shape = (*hidden_BQD.shape[:-1], self.feature_dim)
        noise_BQC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        return self.flow(noise_BQC, hidden_BQD)
