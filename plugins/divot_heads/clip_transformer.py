"""A transformer over the noisy tokens of a clip, whose normalisation is modulated by time and clip.

Shape letters: B clips, Q tokens of one clip, D LLM width, C feature width, W transformer width.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn.functional import silu

from divot_heads.denoiser import zero_init
from divot_lightning.errors import UserError
from divot_lightning.models.positions import sinusoidal_embedding

HIDDEN_BIAS = -1e9
"""Added to the attention to a token that does not count: its weight is exactly 0 in float32, and a clip in which no
token counts still has finite results."""


class ClipTransformer(nn.Module):
    """Transformer blocks with the adaptive normalisation of PixArt (arXiv:2310.00426, section 2.3).

    Each token enters as the sum of its noisy features, its hidden state and its position. Shift, scale and gate of the
    normalisations are one linear function of time and mean hidden state, which all blocks share, plus a table of each
    block. A new transformer is the zero function.
    """

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
        self.features_in = nn.Linear(feature_dim, width)
        self.condition_in = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, width))
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                num_attention_heads,
                width // num_attention_heads,
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                attention_bias=True,
                activation_fn="gelu-approximate",
            )
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.features_out = nn.Linear(width, feature_dim)
        self._make_zero()

    def _make_zero(self) -> None:
        """Let the new transformer be the zero function."""
        for block in self.blocks:
            assert isinstance(block.scale_shift_table, Tensor)
            nn.init.zeros_(block.scale_shift_table)
        for layer in (self.modulation, self.modulation_out, self.features_out):
            zero_init(layer)

    def forward(self, noisy_BQC: Tensor, time_B: Tensor, hidden_BQD: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Predict the velocity.

        Args:
            noisy_BQC: Noisy features, float32.
            time_B: Time, 0 to 1000, float.
            hidden_BQD: Condition of each token, float32.
            mask_BQ: True or 1 where a token counts; no other token attends to the rest. None counts all.

        Returns:
            velocity_BQC, float32.
        """
        counts_BQ1 = torch.ones_like(noisy_BQC[..., :1]) if mask_BQ is None else mask_BQ.unsqueeze(-1).to(noisy_BQC)
        condition_BQW = self.condition_in(hidden_BQD)
        clip_BW = (condition_BQW * counts_BQ1).sum(dim=1) / counts_BQ1.sum(dim=1).clamp(min=1.0)
        modulator_BW = silu(self.time_in(sinusoidal_embedding(time_B, self.width)) + clip_BW)
        positions_QW = sinusoidal_embedding(torch.arange(noisy_BQC.shape[1], device=noisy_BQC.device), self.width)
        stream_BQW = self.features_in(noisy_BQC) + condition_BQW + positions_QW
        bias_B1Q = HIDDEN_BIAS * (1 - counts_BQ1).transpose(1, 2)
        levels_BX = self.modulation(modulator_BW)
        for block in self.blocks:
            stream_BQW = block(stream_BQW, attention_mask=bias_B1Q, timestep=levels_BX)
        shift_B1W, scale_B1W = self.modulation_out(modulator_BW).unsqueeze(1).chunk(2, dim=-1)
        return self.features_out(self.norm_out(stream_BQW) * (1 + scale_B1W) + shift_B1W)


def check_width(width: int, num_attention_heads: int) -> None:
    """Refuse a width that does not divide into attention heads, or that has no sine beside each cosine.

    Raises:
        UserError: It is odd, or no multiple.
    """
    if width % 2 or width % num_attention_heads:
        raise UserError(f"width={width} is not allowed; give an even multiple of {num_attention_heads}")
