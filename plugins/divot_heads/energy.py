"""A generator that is trained with the energy score: one pass per sample, no likelihood.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, W width of the generator, R samples per
token, N rows.
"""

import torch
from torch import Generator, Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import silu

from divot_heads.denoiser import ModulatedMLP
from divot_heads.draws import rows_of_draws
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean


class EnergyHead(GenerationHead):
    """A generator of each token from noise, trained with the energy score, as in CALM (arXiv:2510.27688).

    With samples x, x' of the head and a target y the score is E|x - y|^a - E|x - x'|^a / 2, 0 < a < 2. It is strictly
    proper: only the distribution of the targets minimises it (Gneiting and Raftery 2007, section 4.3). The first term
    pulls samples towards targets, the second keeps them apart. It is estimated, without bias, from `samples_per_token`
    samples, and divided by C^(a / 2), so that it does not grow with the width. Samples of a token cost one pass; tokens
    are sampled independently of each other. CALM trains with 8 samples and a = 1, as here. Its noise is uniform, and it
    averages the score over 100 samples of the distribution that its autoencoder gives for a target; here a target is
    one token and the noise is normal.
    """

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        width: int = 1024,
        depth: int = 3,
        samples_per_token: int = 8,
        exponent: float = 1.0,
    ) -> None:
        """Build the generator.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features, and of the noise.
            width: Width of the generator.
            depth: Residual blocks of the generator.
            samples_per_token: R, samples per token and loss, at least 2.
            exponent: a, at least 1 (below, the gradient is infinite where samples meet) and below 2 (there only the
                mean would be learnt).
        """
        super().__init__(hidden_dim, feature_dim)
        require_at_least(1, width=width, depth=depth)
        require_at_least(2, samples_per_token=samples_per_token)
        if not 1 <= exponent < 2:
            raise UserError(f"exponent={exponent} is not allowed; give 1 to below 2")
        self.samples_per_token = samples_per_token
        self.exponent = exponent
        self.generator = NoiseToFeatures(feature_dim, hidden_dim, width, depth)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the energy score over C^(a / 2), averaged over the tokens; see `GenerationHead.loss`."""
        target_BQC = clear_masked(target_BQC, mask_BQ)
        condition_ND = rows_of_draws(clear_masked(hidden_BQD, mask_BQ), self.samples_per_token)
        noise_NC = torch.randn(len(condition_ND), self.feature_dim, device=condition_ND.device)
        samples_NC = self.generator(noise_NC, condition_ND)
        samples_RBQC = samples_NC.view(self.samples_per_token, *target_BQC.shape)
        score_BQ = energy_score(samples_RBQC, target_BQC, self.exponent)
        return masked_mean(score_BQ / self.feature_dim ** (self.exponent / 2), mask_BQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Turn noise, which `temperature` multiplies, into features_BQC, float32."""
        shape = (*hidden_BQD.shape[:-1], self.feature_dim)
        noise_BQC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        features_NC: Tensor = self.generator(noise_BQC.flatten(0, -2), hidden_BQD.flatten(0, -2))
        return features_NC.view(shape)


class NoiseToFeatures(nn.Module):
    """Residual MLP blocks that turn noise into features, modulated by the condition."""

    def __init__(self, feature_dim: int, condition_dim: int, width: int, depth: int) -> None:
        """Build the layers.

        Args:
            feature_dim: C, width of noise and features.
            condition_dim: D.
            width: W.
            depth: Number of residual blocks.
        """
        super().__init__()
        self.noise_in = nn.Linear(feature_dim, width)
        self.condition_in = nn.Sequential(nn.LayerNorm(condition_dim), nn.Linear(condition_dim, width))
        self.blocks = nn.ModuleList(ModulatedMLP(width) for _ in range(depth))
        self.features_out = nn.Linear(width, feature_dim)

    def forward(self, noise_NC: Tensor, condition_ND: Tensor) -> Tensor:
        """Return features_NC, float32."""
        projected_NW = self.condition_in(condition_ND)
        stream_NW = self.noise_in(noise_NC) + projected_NW
        for block in self.blocks:
            stream_NW = block(stream_NW, silu(projected_NW))
        return self.features_out(stream_NW)


def energy_score(samples_RXC: Tensor, target_XC: Tensor, exponent: float = 1.0) -> Tensor:
    """Estimate E|x - y|^a - E|x - x'|^a / 2 without bias; lower is better.

    Args:
        samples_RXC: R independent samples of each token, R at least 2, float.
        target_XC: y.
        exponent: a.

    Returns:
        score_X.

    >>> energy_score(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0])).item()  # 1 - 2 / 2
    0.0
    """
    first, second = torch.triu_indices(len(samples_RXC), len(samples_RXC), offset=1, device=target_XC.device)
    to_target_RX = vector_norm(samples_RXC - target_XC, dim=-1) ** exponent
    apart_PX = vector_norm(samples_RXC[first] - samples_RXC[second], dim=-1) ** exponent  # P pairs
    return to_target_RX.mean(dim=0) - 0.5 * apart_PX.mean(dim=0)
