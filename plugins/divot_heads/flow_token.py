"""Rectified flow of each token by itself, with guidance.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, N rows (tokens times noise draws).
"""

import torch
from torch import Generator, Tensor

from divot_heads.denoiser import MLPDenoiser
from divot_heads.draws import mean_of_draws, rows_of_draws
from divot_heads.guidance import condition_dropout_or_none
from divot_heads.rectified_flow import TIME_SCALE, RectifiedFlowHead, Solver, TimeSampling, sample_times
from divot_lightning.errors import require_at_least
from divot_lightning.parts.heads import clear_masked, force_float32, masked_mean


class FlowTokenHead(RectifiedFlowHead):
    """Rectified flow of each token by itself, given its hidden state, as in NextStep-1 (arXiv:2508.10711).

    Loss: |f((1 - s) x + s e, s, h) - (e - x)|^2 / C for features x, noise e, hidden state h and s = logistic(N(0, 1));
    see `divot_heads.rectified_flow`. Tokens are sampled independently of each other. NextStep-1's denoiser has width
    1536 and depth 12, for an LLM of 14 billion parameters; the default is that of `DiffusionHead`, so that the two
    differ in the objective only. Sampling follows the ordinary differential equation; NextStep-1's code follows a
    stochastic one, with 20 steps of Euler and Maruyama.
    """

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        width: int = 1024,
        depth: int = 3,
        draws_per_token: int = 4,
        time_sampling: TimeSampling = "logit_normal",
        condition_dropout: float = 0.1,
        sampling_steps: int = 20,
        solver: Solver = "midpoint",
        guidance: float = 1.0,
        shift: float = 1.0,
    ) -> None:
        """Build the denoiser.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
            width: Width of the denoiser, even.
            depth: Residual blocks of the denoiser.
            draws_per_token: Draws of noise and time per token and loss.
            time_sampling: Distribution of the times in training.
            condition_dropout: Probability that a row is trained without its hidden state, 0 to below 1.
            sampling_steps: Steps per sample; "midpoint" takes two evaluations of the denoiser for each.
            solver: How sampling integrates the velocity.
            guidance: Guidance scale of sampling; 1 samples the learnt distribution, above 1 exaggerates the condition.
            shift: Above 1 takes more of the steps near the noise; see `falling_times`.
        """
        super().__init__(hidden_dim, feature_dim, time_sampling, sampling_steps, solver, guidance, shift)
        require_at_least(1, width=width, depth=depth, draws_per_token=draws_per_token)
        self.draws_per_token = draws_per_token
        self.denoiser = MLPDenoiser(feature_dim, hidden_dim, width, depth)
        self.condition_dropout = condition_dropout_or_none(hidden_dim, condition_dropout, guidance)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the mean squared error of the velocity over C, draws and tokens; see `GenerationHead.loss`."""
        clean_NC = rows_of_draws(clear_masked(target_BQC, mask_BQ), self.draws_per_token)
        condition_ND = rows_of_draws(clear_masked(hidden_BQD, mask_BQ), self.draws_per_token)
        if self.condition_dropout is not None:
            condition_ND = self.condition_dropout(condition_ND)
        noise_NC = torch.randn_like(clean_NC)
        time_N = sample_times(len(clean_NC), self.time_sampling, clean_NC.device)
        noisy_NC = torch.lerp(clean_NC, noise_NC, time_N.unsqueeze(-1))
        error_NC = self.denoiser(noisy_NC, TIME_SCALE * time_N, condition_ND) - (noise_NC - clean_NC)
        error_BQ = mean_of_draws(error_NC.square().mean(dim=-1), target_BQC, self.draws_per_token)
        return masked_mean(error_BQ, mask_BQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Follow the velocity from noise, which `temperature` multiplies, to features_BQC, float32."""
        condition_ND = hidden_BQD.flatten(0, -2)
        shape = (len(condition_ND), self.feature_dim)
        noise_NC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        features_NC = self.flow(noise_NC, condition_ND)
        return features_NC.view(*hidden_BQD.shape[:-1], self.feature_dim)
