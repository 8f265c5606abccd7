"""DynamiCrafter's U-Net as a model of `diffusers`.

Shape letters: B batch, c latent channels, F frames, h w latent grid, N = B * F, K condition tokens, E their width,
D width of the time embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from torch import Tensor, nn

from divot_backbones.denoisers.dynamicrafter.layers import LayerSizes, UNetLayer
from divot_backbones.denoisers.dynamicrafter.levels import check_sizes, down_levels, up_levels
from divot_backbones.denoisers.dynamicrafter.transformers import TemporalTransformer, zero_init
from divot_lightning.errors import UserError
from divot_lightning.models.recompilation import allow_many_versions

TIME_WIDTH_FACTOR = 4
"""Width of the time embedding divided by the channels of the first level."""


class DynamiCrafterUNet(ModelMixin, ConfigMixin):
    """The U-Net of DynamiCrafter (arXiv:2310.12190) without its image input, as Divot uses it (section 3.1.3).

    The defaults are the released sizes: 1438.8 M parameters. A clip may have any number of frames, and any grid that
    divides by 2 for each level after the first.

    Args:
        in_channels: Channels c of the noisy latents.
        out_channels: Channels of the prediction.
        block_out_channels: Channels of each level; multiples of `norm_num_groups`.
        layers_per_block: Layers of a level on the way down; on the way up there is one more.
        attention_levels: Levels with transformers; the middle always has them.
        attention_head_dim: Width of an attention head; divides the channels of those levels.
        transformer_layers: Blocks of each transformer.
        cross_attention_dim: Width E of a condition token.
        context_split: Condition tokens that the first attention branch reads; all others are read by the second, gated
            one. 77 as released (DynamiCrafter's text tokens); None for one branch and no gates, in a new training.
        input_attention_heads: Heads of the temporal transformer right after the first convolution; 0 leaves it out.
        norm_num_groups: Groups of all group norms.
        dropout: Dropout of the convolutions within a frame and over time.
        frame_stride: Frame stride that is assumed when a call gives none; 3 as released. None: not conditioned on it.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("ResnetBlock2D", "TemporalConvLayer", "SpatialTransformer", "TemporalTransformer")
    _no_split_modules = ("UNetLayer", "TemporalTransformer")

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        attention_head_dim: int = 64,
        transformer_layers: int = 1,
        cross_attention_dim: int = 1024,
        context_split: int | None = 77,
        input_attention_heads: int = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.1,
        frame_stride: int | None = 3,
    ) -> None:
        super().__init__()
        check_sizes(block_out_channels, attention_levels, attention_head_dim, norm_num_groups)
        first = block_out_channels[0]
        time_dim = TIME_WIDTH_FACTOR * first
        sizes = LayerSizes(
            time_dim=time_dim,
            head_dim=attention_head_dim,
            transformer_layers=transformer_layers,
            context_dim=cross_attention_dim,
            context_split=context_split,
            norm_groups=norm_num_groups,
            dropout=dropout,
        )
        self.sinusoid = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, time_dim)
        self.frame_stride_embedding = None if frame_stride is None else TimestepEmbedding(first, time_dim)
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.input_transformer: TemporalTransformer | None = None
        if input_attention_heads:
            self.input_transformer = TemporalTransformer(
                first, input_attention_heads, attention_head_dim, transformer_layers, norm_num_groups
            )
        self.down_levels, skips = down_levels(block_out_channels, layers_per_block, attention_levels, sizes)
        last = block_out_channels[-1]
        self.mid_layers = nn.ModuleList(UNetLayer(last, last, sizes, attention) for attention in (True, False))
        self.up_levels = up_levels(block_out_channels, layers_per_block, attention_levels, sizes, skips)
        self.norm_out = nn.GroupNorm(norm_num_groups, first)
        self.conv_out = zero_init(nn.Conv2d(first, out_channels, 3, padding=1))
        if self.frame_stride_embedding is not None:
            zero_init(self.frame_stride_embedding.linear_2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        frame_stride: Tensor | float | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[Tensor]:
        """Predict noise, clean latents or v, whichever it was trained for.

        Args:
            sample: Noisy latents (B, c, F, h, w), float.
            timestep: Diffusion time in [0, 1000), one or one per clip, int or float.
            encoder_hidden_states: Condition tokens (B, K, E), float.
            frame_stride: Distance of two frames of a clip in frames of its video, one or one per clip; the default of
                the config if None.
            return_dict: Whether to return an object with the prediction as `sample`, or a tuple.

        Returns:
            The prediction, of the shape of `sample` but for `out_channels`.

        Raises:
            UserError: The grid does not divide into the levels, or there are too few condition tokens.
        """
        num_frames = sample.shape[2]
        self.check_grid(sample.shape[3:])
        time_ND = self._embed_time(sample, timestep, frame_stride).repeat_interleave(num_frames, dim=0)
        state = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        if self.input_transformer is not None:
            state = self.input_transformer(state, num_frames)
        skips = [state]
        for level in self.down_levels:
            layers, resample = _parts_of(level, "downsample")
            for layer in layers:
                state = layer(state, time_ND, encoder_hidden_states, num_frames)
                skips.append(state)
            if resample is not None:
                state = resample(state)
                skips.append(state)
        for layer in self.mid_layers:
            state = layer(state, time_ND, encoder_hidden_states, num_frames)
        for level in self.up_levels:
            layers, resample = _parts_of(level, "upsample")
            for layer in layers:
                state = layer(torch.cat([state, skips.pop()], dim=1), time_ND, encoder_hidden_states, num_frames)
            if resample is not None:
                state = resample(state)
        state = self.conv_out(nn.functional.silu(self.norm_out(state)))
        prediction = state.unflatten(0, (-1, num_frames)).transpose(1, 2)
        return UNet3DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def _embed_time(self, sample: Tensor, timestep: Tensor | float, frame_stride: Tensor | float | None) -> Tensor:
        """Return the embedding of time and frame stride, (B, D)."""
        embedding_BD = self.time_embedding(self._sinusoid(timestep, sample))
        if self.frame_stride_embedding is None:
            return embedding_BD
        stride = self.config.frame_stride if frame_stride is None else frame_stride
        return embedding_BD + self.frame_stride_embedding(self._sinusoid(stride, sample))

    def _sinusoid(self, number: Tensor | float, sample: Tensor) -> Tensor:
        """Encode a number, or one number per clip; computed in float32."""
        return self.sinusoid(torch.as_tensor(number, device=sample.device).expand(len(sample))).to(sample.dtype)

    def check_grid(self, grid: Sequence[int]) -> None:
        """Raise UserError unless the rows and columns of latents divide into the levels."""
        levels = len(self.config.block_out_channels)
        factor = 2 ** (levels - 1)
        if any(size % factor for size in grid):
            raise UserError(
                f"DynamiCrafter U-Net: latents of {grid[0]}x{grid[1]} do not divide by {factor}, which its {levels} "
                "levels need; change the size of the frames, or take fewer levels"
            )

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks of `_repeated_blocks`; arguments are those of `torch.compile`.

        The released U-Net has residual blocks of 14 sizes, more than torch compiles by itself.
        """
        allow_many_versions()
        super().compile_repeated_blocks(*args, **kwargs)


def _parts_of(level: nn.Module, resample: str) -> tuple[nn.ModuleList, nn.Module | None]:
    """Return the layers of a level, and the layer that changes its resolution if it has one."""
    assert isinstance(level, nn.ModuleDict)
    layers = level["layers"]
    assert isinstance(layers, nn.ModuleList)
    return layers, dict(level.items()).get(resample)
