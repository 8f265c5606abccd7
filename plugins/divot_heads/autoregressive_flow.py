"""A normalising flow over the tokens of a clip in order, with an exact likelihood.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, W width of the context.
"""

import math

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Generator, Tensor, nn

from divot_heads.clip_transformer import HIDDEN_BIAS, check_width
from divot_heads.coupling import CouplingFlow
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.positions import sinusoidal_embedding
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean


class AutoregressiveFlowHead(GenerationHead):
    """A normalising flow of each token, given its hidden state and the tokens before it: an exact likelihood.

    log p(x_1 ... x_Q) = sum_q log p(x_q | x_1 ... x_(q-1), h), by a causal transformer over the tokens, as TarFlow's
    (arXiv:2412.06329). Where TarFlow's blocks are affine in each token, here several coupling layers (Real NVP,
    arXiv:1605.08803) transform a token, so that a clip of one token has a rich distribution too:
    log p(x) = log N(f(x); 0, 1) + log|det df/dx|. As in TarFlow, features are trained with a little noise, without
    which the likelihood of features that lie on a surface has no bound; samples contain this noise. Loss: the negative
    log-likelihood in nats per feature dimension, to compare with that of `GMMHead`. Sampling takes Q passes in order.
    The size is our choice.
    """

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        width: int = 512,
        depth: int = 2,
        num_attention_heads: int = 8,
        num_couplings: int = 8,
        noise_std: float = 0.05,
    ) -> None:
        """Build transformer and couplings.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features, at least 2.
            width: Width of the transformer and of the couplings, even, a multiple of `num_attention_heads`.
            depth: Blocks of the transformer.
            num_attention_heads: Attention heads of each block.
            num_couplings: Coupling layers per token, at least 1, after one affine layer.
            noise_std: Standard deviation of the noise that is added to the features in training, at least 0; TarFlow's
                is 0.05 for pixels between -1 and 1.
        """
        super().__init__(hidden_dim, feature_dim)
        require_at_least(
            1, width=width, depth=depth, num_attention_heads=num_attention_heads, num_couplings=num_couplings
        )
        require_at_least(0, noise_std=noise_std)
        if feature_dim < 2:
            raise UserError(f"AutoregressiveFlowHead needs at least 2 features per token; there are {feature_dim}")
        check_width(width, num_attention_heads)
        self.noise_std = noise_std
        self.context = CausalContext(feature_dim, hidden_dim, width, depth, num_attention_heads)
        self.flow = CouplingFlow(feature_dim, width, num_couplings)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the negative log-likelihood per feature dimension, in nats; see `GenerationHead.loss`.

        Masked tokens are zeros to the tokens after them.
        """
        noisy_BQC = target_BQC + self.noise_std * torch.randn_like(target_BQC)
        log_likelihood_BQ = self.log_likelihood(clear_masked(hidden_BQD, mask_BQ), clear_masked(noisy_BQC, mask_BQ))
        return masked_mean(-log_likelihood_BQ / self.feature_dim, mask_BQ)

    def log_likelihood(self, hidden_BQD: Tensor, features_BQC: Tensor) -> Tensor:
        """Return log p of each token given those before it, in nats, (B, Q); its sum over Q is that of the clip."""
        noise_BQC, log_det_BQ = self.flow(features_BQC, self.context(hidden_BQD, features_BQC))
        log_normal_BQ = -0.5 * (noise_BQC.square() + math.log(2 * math.pi)).sum(dim=-1)
        return log_normal_BQ + log_det_BQ

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Invert the flow from noise, which `temperature` multiplies, token by token; return features_BQC, float32."""
        shape = (*hidden_BQD.shape[:-1], self.feature_dim)
        noise_BQC = temperature * torch.randn(shape, generator=generator, device=hidden_BQD.device)
        features_BQC = torch.zeros_like(noise_BQC)
        for token in range(shape[1]):
            past = slice(0, token + 1)  # the features of the token itself are not looked at
            context_BQW = self.context(hidden_BQD[:, past], features_BQC[:, past])
            features_BQC[:, token], _ = self.flow(noise_BQC[:, token], context_BQW[:, token], inverse=True)
        return features_BQC


class CausalContext(nn.Module):
    """What a token may depend on: its hidden state and, by causal attention, everything of the tokens before it."""

    def __init__(self, feature_dim: int, hidden_dim: int, width: int, depth: int, num_attention_heads: int) -> None:
        """Build the layers.

        Args:
            feature_dim: C.
            hidden_dim: D.
            width: W, even, a multiple of `num_attention_heads`.
            depth: Number of blocks.
            num_attention_heads: Attention heads of each block.
        """
        super().__init__()
        self.width = width
        self.previous_in = nn.Linear(feature_dim, width)
        self.hidden_in = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, width))
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(width, num_attention_heads, width // num_attention_heads, attention_bias=True)
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, hidden_BQD: Tensor, features_BQC: Tensor) -> Tensor:
        """Return context_BQW, float32; that of token q depends on the hidden states up to q, the features before q."""
        previous_BQC = torch.cat([torch.zeros_like(features_BQC[:, :1]), features_BQC[:, :-1]], dim=1)
        num_tokens = features_BQC.shape[1]
        positions_QW = sinusoidal_embedding(torch.arange(num_tokens, device=features_BQC.device), self.width)
        stream_BQW = self.hidden_in(hidden_BQD) + self.previous_in(previous_BQC) + positions_QW
        bias_QQ = torch.full((num_tokens, num_tokens), HIDDEN_BIAS, device=features_BQC.device).triu(diagonal=1)
        for block in self.blocks:
            stream_BQW = block(stream_BQW, attention_mask=bias_QQ.expand(len(stream_BQW), -1, -1))
        return self.norm_out(stream_BQW)
