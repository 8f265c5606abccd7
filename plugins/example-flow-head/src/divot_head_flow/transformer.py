"""A transformer over all noisy tokens of a clip.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, W transformer width, A attention heads.
"""

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


class TokenTransformer(nn.Module):
    """Transformer blocks modulated, token by token, by the time and the LLM's hidden state (AdaLN-zero).

    Modulation as in DiT (arXiv:2212.09748, section 3.2). A new transformer is the zero function.
    """

    def __init__(self, feature_dim: int, hidden_dim: int, width: int, depth: int, num_attention_heads: int) -> None:
        """Build the layers.

        Args:
            feature_dim: C.
            hidden_dim: D.
            width: W, a multiple of `num_attention_heads`, even.
            depth: Number of blocks.
            num_attention_heads: A.
        """
        super().__init__()
        self.features_in = nn.Linear(feature_dim, width)
        self.hidden_in = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, width))
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, num_attention_heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = _zeros(nn.Linear(width, 2 * width))
        self.features_out = _zeros(nn.Linear(width, feature_dim))

    def condition(self, hidden_BQD: Tensor) -> Tensor:
        """Return the part of the condition that does not depend on the time, (B, Q, W); computed once per clip."""
        width = self.features_in.out_features
        position_QW = _sinusoids(torch.arange(hidden_BQD.shape[1], device=hidden_BQD.device), width)
        condition_BQW: Tensor = self.hidden_in(hidden_BQD) + position_QW
        return condition_BQW

    def forward(
        self, noisy_BQC: Tensor, time_B: Tensor, condition_BQW: Tensor, mask_BQ: Tensor | None = None
    ) -> Tensor:
        """Predict the velocity.

        Args:
            noisy_BQC: Features mixed with noise, float32.
            time_B: 0 (noise) to 1 (features), float32.
            condition_BQW: From `condition`.
            mask_BQ: True or 1 where a token counts; only the token itself attends to one that does not.

        Returns:
            velocity_BQC, float32.
        """
        time_B1W = self.time_in(_sinusoids(1000.0 * time_B, condition_BQW.shape[-1])).unsqueeze(1)
        modulator_BQW = silu(condition_BQW + time_B1W)
        stream_BQW = self.features_in(noisy_BQC) + condition_BQW
        visible_B1QQ = None if mask_BQ is None else _visible(mask_BQ)
        for block in self.blocks:
            stream_BQW = block(stream_BQW, modulator_BQW, visible_B1QQ)
        shift_BQW, scale_BQW = self.modulation_out(modulator_BQW).chunk(2, dim=-1)
        velocity_BQC: Tensor = self.features_out(self.norm_out(stream_BQW) * (1 + scale_BQW) + shift_BQW)
        return velocity_BQC


class Block(nn.Module):
    """Self-attention over the tokens, then an MLP, each normalised, modulated and gated."""

    def __init__(self, width: int, num_attention_heads: int) -> None:
        """Build the block.

        Args:
            width: W.
            num_attention_heads: A.
        """
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeros(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, stream_BQW: Tensor, modulator_BQW: Tensor, visible_B1QQ: Tensor | None) -> Tensor:
        """Return the stream, (B, Q, W); `visible_B1QQ` is True where a row attends to a column."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(modulator_BQW).chunk(6, dim=-1)
        attended_BQW = self._attend(self.norm_attention(stream_BQW) * (1 + scale_a) + shift_a, visible_B1QQ)
        stream_BQW = stream_BQW + gate_a * attended_BQW
        update_BQW: Tensor = self.mlp(self.norm_mlp(stream_BQW) * (1 + scale_m) + shift_m)
        return stream_BQW + gate_m * update_BQW

    def _attend(self, states_BQW: Tensor, visible_B1QQ: Tensor | None) -> Tensor:
        q, k, v = self.qkv(states_BQW).unflatten(-1, (3, self.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)
        attended_BAQV = scaled_dot_product_attention(q, k, v, attn_mask=visible_B1QQ)
        attended_BQW: Tensor = self.attention_out(attended_BAQV.transpose(1, 2).flatten(-2))
        return attended_BQW


def _visible(mask_BQ: Tensor) -> Tensor:
    """Let every token attend to the tokens that count and to itself, so that no row is empty."""
    itself_QQ = torch.eye(mask_BQ.shape[1], dtype=torch.bool, device=mask_BQ.device)
    return (mask_BQ.bool()[:, None, :] | itself_QQ).unsqueeze(1)


def _sinusoids(position_N: Tensor, width: int) -> Tensor:
    """Embed numbers as sines and cosines (arXiv:1706.03762, section 3.5), (N, W) float32."""
    embedding_NW: Tensor = get_timestep_embedding(position_N, width, downscale_freq_shift=0)
    return embedding_NW


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
