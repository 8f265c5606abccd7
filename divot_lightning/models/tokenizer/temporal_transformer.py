"""The tokenizer's first stage after the vision encoder: each patch position attends over its frames.

Letters: B batch, F frames (or the steps in time that a vision encoder merged frames to), P patch positions, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from divot_lightning.models.transformer_block import BLOCK_NORM_EPS, TransformerBlock, quick_gelu

TemporalInit = Literal["zero", "random"]


class TemporalTransformer(nn.Module):
    """Attention over time, separately for each patch position (Divot appendix A.1, arXiv:2412.04432).

    There is no residual connection around the whole stage: the next stage gets only this stage's output projection.

    Args:
        input_dim: Channels of the patch features.
        num_frames: Frames per clip; each has a learned position.
        width: Channels inside.
        layers: Number of blocks.
        heads: Attention heads per block; divides ``width``.
        output_dim: Channels of the output.
        init: How the weights are initialised, see ``TokenizerConfig.temporal_init``.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        num_frames: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        init: TemporalInit = "zero",
    ) -> None:
        super().__init__()
        self.input_projection = nn.Linear(input_dim, width)
        self.frame_positions = nn.Parameter(torch.randn(num_frames, width) * width**-0.5)
        blocks = [TransformerBlock(width, heads, quick_gelu) for _ in range(layers)]
        self.blocks = nn.Sequential(*blocks)
        self.output_norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.output_projection = nn.Linear(width, output_dim)
        if init == "zero":
            self._zero_init(blocks)

    def _zero_init(self, blocks: list[TransformerBlock]) -> None:
        """Initialise the input projection as the identity; positions, residual branches and output give zero."""
        nn.init.eye_(self.input_projection.weight)
        nn.init.zeros_(self.input_projection.bias)
        nn.init.zeros_(self.frame_positions)
        branch_ends = [layer for block in blocks for layer in (block.attention.out, block.mlp_out)]
        for layer in (*branch_ends, self.output_projection):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, patches_BFPC: Tensor) -> Tensor:
        """Map patch features (B, F, P, input_dim) to (B, F, P, output_dim), both float."""
        batch, frames, positions, _ = patches_BFPC.shape
        x_BPFC = self.input_projection(patches_BFPC).transpose(1, 2) + self.frame_positions
        x = self.blocks(x_BPFC.reshape(batch * positions, frames, -1))
        y_BPFC = self.output_projection(self.output_norm(x)).unflatten(0, (batch, positions))
        return y_BPFC.transpose(1, 2)
