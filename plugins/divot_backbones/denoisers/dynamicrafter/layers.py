"""One layer of the U-Net: convolutions within a frame, across frames, and the two transformers.

Shape letters: N frames of all clips (batch times frames), C channels, h w grid, D width of the time embedding, B batch,
K context tokens, E their width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from torch import Tensor, nn

from divot_backbones.denoisers.dynamicrafter.transformers import SpatialTransformer, TemporalTransformer, zero_init


@dataclass(frozen=True)
class LayerSizes:
    """What all layers of a U-Net have in common.

    Attributes:
        time_dim: Width D of the time embedding.
        head_dim: Width of an attention head.
        transformer_layers: Blocks of each transformer.
        context_dim: Width E of a condition token.
        context_split: Condition tokens of the first branch; None for one branch.
        norm_groups: Groups of the group norms.
        dropout: Dropout of the convolutions.
    """

    time_dim: int
    head_dim: int
    transformer_layers: int
    context_dim: int
    context_split: int | None
    norm_groups: int
    dropout: float


class UNetLayer(nn.Module):
    """Residual convolutions of each frame, convolutions over time and, if asked for, the two transformers.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        sizes: Sizes of all layers.
        attention: Whether it has the transformers.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any

    def __init__(self, in_channels: int, out_channels: int, sizes: LayerSizes, attention: bool) -> None:
        super().__init__()
        self.resnet = ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=sizes.time_dim,
            groups=sizes.norm_groups,
            eps=1e-5,
            dropout=sizes.dropout,
        )
        zero_init(self.resnet.conv2)
        self.temporal_conv = TemporalConvLayer(
            out_channels, out_channels, dropout=sizes.dropout, norm_num_groups=sizes.norm_groups
        )
        self.spatial_transformer: SpatialTransformer | None = None
        self.temporal_transformer: TemporalTransformer | None = None
        if attention:
            heads, head_dim, layers = out_channels // sizes.head_dim, sizes.head_dim, sizes.transformer_layers
            self.spatial_transformer = SpatialTransformer(
                out_channels, head_dim, layers, sizes.context_dim, sizes.context_split, sizes.norm_groups
            )
            self.temporal_transformer = TemporalTransformer(out_channels, heads, head_dim, layers, sizes.norm_groups)

    def forward(self, state_NChw: Tensor, time_ND: Tensor, context_BKE: Tensor, num_frames: int) -> Tensor:
        """Return features with the output's channels; the `num_frames` frames of a clip are consecutive."""
        state_NChw = self._run(self.resnet, state_NChw, time_ND)
        state_NChw = self._run(self.temporal_conv, state_NChw, num_frames)
        if self.spatial_transformer is not None:
            state_NChw = self._run(self.spatial_transformer, state_NChw, context_BKE)
            state_NChw = self._run(self.temporal_transformer, state_NChw, num_frames)
        return state_NChw

    def _run(self, module: Any, *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)
