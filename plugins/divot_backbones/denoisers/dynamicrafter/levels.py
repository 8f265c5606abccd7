"""The levels of the U-Net: layers at one size of the grid, and the convolution to the next size."""

from collections.abc import Sequence

from diffusers.models.upsampling import Upsample2D
from torch import nn

from divot_backbones.denoisers.dynamicrafter.layers import LayerSizes, UNetLayer
from divot_lightning.errors import UserError


def check_sizes(channels: Sequence[int], attention_levels: Sequence[int], head_dim: int, norm_groups: int) -> None:
    """Raise UserError unless the sizes of a U-Net fit together."""
    unknown = [level for level in attention_levels if level not in range(len(channels))]
    if unknown:
        raise UserError(f"DynamiCrafter U-Net: attention_levels {unknown} are not among 0 to {len(channels) - 1}")
    for level, width in enumerate(channels):
        if width < 1 or width % norm_groups:
            raise UserError(
                f"DynamiCrafter U-Net: block_out_channels {list(channels)} must be multiples of norm_num_groups "
                f"{norm_groups}; {width} is not"
            )
        # The middle, which follows the last level, has transformers in any case.
        if (level in attention_levels or level == len(channels) - 1) and width % head_dim:
            raise UserError(
                f"DynamiCrafter U-Net: {width} channels of level {level} do not divide into heads of "
                f"attention_head_dim {head_dim}"
            )


def down_levels(
    channels: Sequence[int], layers: int, attention_levels: Sequence[int], sizes: LayerSizes
) -> tuple[nn.ModuleList, list[int]]:
    """Build the way down.

    Args:
        channels: Channels of each level.
        layers: Layers of a level.
        attention_levels: Levels with transformers.
        sizes: Sizes of all layers.

    Returns:
        The levels, and the channels of the skip connections in the order in which they arise, with that of the first
        convolution.
    """
    levels, skips, width = nn.ModuleList(), [channels[0]], channels[0]
    for level, out in enumerate(channels):
        stack = nn.ModuleList()
        for _ in range(layers):
            stack.append(UNetLayer(width, out, sizes, level in attention_levels))
            width = out
        skips += [out] * layers
        parts: dict[str, nn.Module] = {"layers": stack}
        if level < len(channels) - 1:
            parts["downsample"] = nn.Conv2d(out, out, 3, stride=2, padding=1)
            skips.append(out)
        levels.append(nn.ModuleDict(parts))
    return levels, skips


def up_levels(
    channels: Sequence[int], layers: int, attention_levels: Sequence[int], sizes: LayerSizes, skips: Sequence[int]
) -> nn.ModuleList:
    """Build the way up, from the last level to the first; each layer also reads the last skip connection that is left.

    Args:
        channels: Channels of each level.
        layers: Layers of a level on the way down; here there is one more.
        attention_levels: Levels with transformers.
        sizes: Sizes of all layers.
        skips: Channels of the skip connections, as `down_levels` returns them.
    """
    levels, width, left = nn.ModuleList(), channels[-1], list(skips)
    for level, out in reversed(list(enumerate(channels))):
        stack = nn.ModuleList()
        for _ in range(layers + 1):
            stack.append(UNetLayer(width + left.pop(), out, sizes, level in attention_levels))
            width = out
        parts: dict[str, nn.Module] = {"layers": stack}
        if level > 0:
            parts["upsample"] = Upsample2D(out, use_conv=True)
        levels.append(nn.ModuleDict(parts))
    return levels
