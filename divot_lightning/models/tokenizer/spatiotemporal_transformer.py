"""The tokenizer's second stage: full attention over all pooled positions of all frames.

Letters: B batch, F frames, P pooled positions per frame, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.models.transformer_block import TransformerBlock


class SpatiotemporalTransformer(nn.Module):
    """Attention over F x P tokens with learned frame and grid positions (Divot appendix A.1, arXiv:2412.04432).

    Args:
        width: Channels of input and output.
        num_frames: Frames per clip.
        num_positions: Pooled grid positions per frame.
        layers: Number of blocks.
        heads: Attention heads per block; divides ``width``.
    """

    def __init__(self, width: int, *, num_frames: int, num_positions: int, layers: int, heads: int) -> None:
        super().__init__()
        self.grid_positions = nn.Parameter(torch.randn(num_positions, width) * width**-0.5)
        self.frame_positions = nn.Parameter(torch.randn(num_frames, width) * width**-0.5)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, functional.gelu) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BFPC: Tensor) -> Tensor:
        """Map (B, F, P, width) to one sequence (B, F * P, width), frame by frame."""
        x_BFPC = x_BFPC + self.frame_positions[:, None] + self.grid_positions
        return self.norm(self.blocks(x_BFPC.flatten(1, 2)))
