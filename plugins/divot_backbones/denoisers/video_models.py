"""What differs between the video models of `diffusers`: one row per class.

Shape letters: B batch, f latent frames, c latent channels, h w latent grid, K condition tokens, E condition width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

from divot_lightning.errors import UserError

LatentLayout = Literal["channels_first", "frames_first", "packed"]


class Sizes(NamedTuple):
    """The sizes that the de-tokenizer supplies; see `Denoiser`."""

    channels: int
    frames: int
    grid: tuple[int, int]
    condition_tokens: int
    condition_dim: int


class Inputs(NamedTuple):
    """What a model is called with.

    Attributes:
        config: Config of the model.
        latents: Noisy latents in the model's layout.
        condition_BKE: Projected condition tokens.
        pooled_BP: A vector per clip, (B, P); None for models that take none.
        sizes: The sizes.
        rope_scale: Seconds per latent frame, and pixels per latent row and column.
    """

    config: Any
    latents: Tensor
    condition_BKE: Tensor
    pooled_BP: Tensor | None
    sizes: Sizes
    rope_scale: tuple[float, float, float]


def _no_sizes(sizes: Sizes, config: dict[str, Any] | None) -> dict[str, Any]:
    return {}


def _no_arguments(inputs: Inputs) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class VideoModel:
    """A video model of `diffusers`.

    Attributes:
        class_name: Its class.
        condition_key: Setting with the width of the condition that it attends to.
        patch: Returns frames, rows and columns of a patch, by which the latents must be divisible.
        layout: Axes of its latents: (B, c, f, h, w), (B, f, c, h, w), or (B, f * h * w, c).
        sizes: Returns further settings that follow from the sizes and, for an untrained model, from its given settings.
        arguments: Returns further arguments of its forward.
        cross_attention: Parts of the names of its layers that attend to the condition; empty if latents and condition
            share their attention.
        not_cross_attention: Parts of names that exclude a layer from `cross_attention`.
        pooled_key: Setting with the width of a vector per clip that it needs besides; None if it needs none.
        time: Turns our time in [0, 1000], 1000 for pure noise, into the model's.
        sign: The prediction is multiplied by it.
    """

    class_name: str
    condition_key: str
    patch: Callable[[Any], tuple[int, int, int]]
    layout: LatentLayout = "channels_first"
    sizes: Callable[[Sizes, dict[str, Any] | None], dict[str, Any]] = _no_sizes
    arguments: Callable[[Inputs], dict[str, Any]] = _no_arguments
    cross_attention: tuple[str, ...] = ()
    not_cross_attention: tuple[str, ...] = ()
    pooled_key: str | None = None
    time: Callable[[Tensor], Tensor] = lambda time_B: time_B
    sign: int = 1


def _inner_width(config: dict[str, Any] | None, heads: int, head_dim: int) -> dict[str, Any]:
    """Return the width of the attention to captions, which follows a projection to the model's width."""
    if config is None:
        return {}
    width = config.get("num_attention_heads", heads) * config.get("attention_head_dim", head_dim)
    return {"cross_attention_dim": width}


def _latte_sizes(sizes: Sizes, config: dict[str, Any] | None) -> dict[str, Any]:
    rows, columns = sizes.grid
    if rows != columns:
        raise UserError(f"denoiser: Latte takes square frames only, and these have {rows}x{columns} latents")
    return {"sample_size": sizes.grid[0], "video_length": sizes.frames, **_inner_width(config, 16, 88)}


def _ltx_sizes(sizes: Sizes, config: dict[str, Any] | None) -> dict[str, Any]:
    return _inner_width(config, 32, 64)


def _cogvideox_sizes(sizes: Sizes, config: dict[str, Any] | None) -> dict[str, Any]:
    return {"max_text_seq_length": sizes.condition_tokens}


def _all_count(inputs: Inputs) -> dict[str, Any]:
    """Return a mask of the condition tokens: all of them count."""
    condition = inputs.condition_BKE
    return {"encoder_attention_mask": torch.ones(condition.shape[:2], dtype=torch.bool, device=condition.device)}


def _ltx_arguments(inputs: Inputs) -> dict[str, Any]:
    sizes = {"num_frames": inputs.sizes.frames, "height": inputs.sizes.grid[0], "width": inputs.sizes.grid[1]}
    return {"encoder_attention_mask": None, **sizes, "rope_interpolation_scale": inputs.rope_scale}


def _hunyuan_arguments(inputs: Inputs) -> dict[str, Any]:
    guided = inputs.config.guidance_embeds
    # Distilled guidance: the scale 6 that its sampler has by default, in thousandths.
    guidance = torch.full((len(inputs.latents),), 6000.0, device=inputs.latents.device) if guided else None
    return {**_all_count(inputs), "pooled_projections": inputs.pooled_BP, "guidance": guidance}


def _cogvideox_arguments(inputs: Inputs) -> dict[str, Any]:
    config = inputs.config
    if not config.use_rotary_positional_embeddings:
        return {}
    rows, columns = (size // config.patch_size for size in inputs.sizes.grid)
    height, width = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    # Positions as in pretraining: the grid is enlarged to touch the edges of the model's own, and lies in its middle.
    scale = min(height / rows, width / columns)
    used = round(rows * scale), round(columns * scale)
    top, left = round((height - used[0]) / 2), round((width - used[1]) / 2)
    rotary = get_3d_rotary_pos_embed(
        config.attention_head_dim,
        ((top, left), (top + used[0], left + used[1])),
        (rows, columns),
        inputs.sizes.frames,
        device=inputs.latents.device,
    )
    return {"image_rotary_emb": rotary}


def _cosmos_arguments(inputs: Inputs) -> dict[str, Any]:
    if not inputs.config.concat_padding_mask:
        return {}
    return {"padding_mask": inputs.latents.new_zeros(1, 1, *inputs.latents.shape[-2:])}


UNET3D = VideoModel(
    "UNet3DConditionModel",
    "cross_attention_dim",
    lambda config: (1, 1, 1),
    cross_attention=(".attn2.",),
    not_cross_attention=("temp_attentions", "transformer_in"),  # their second attention is over frames, too
)
LATTE = VideoModel(
    "LatteTransformer3DModel",
    "caption_channels",
    lambda config: (1, config.patch_size, config.patch_size),
    sizes=_latte_sizes,
    cross_attention=(".attn2.", "caption_projection."),
)
WAN = VideoModel(
    "WanTransformer3DModel",
    "text_dim",
    lambda config: tuple(config.patch_size),
    cross_attention=(".attn2.", "text_embedder."),
)
LTX = VideoModel(
    "LTXVideoTransformer3DModel",
    "caption_channels",
    lambda config: (config.patch_size_t, config.patch_size, config.patch_size),
    layout="packed",
    sizes=_ltx_sizes,
    arguments=_ltx_arguments,
    cross_attention=(".attn2.", "caption_projection."),
)
COGVIDEOX = VideoModel(
    "CogVideoXTransformer3DModel",
    "text_embed_dim",
    lambda config: (config.patch_size_t or 1, config.patch_size, config.patch_size),
    layout="frames_first",
    sizes=_cogvideox_sizes,
    arguments=_cogvideox_arguments,
)
HUNYUAN = VideoModel(
    "HunyuanVideoTransformer3DModel",
    "text_embed_dim",
    lambda config: (config.patch_size_t, config.patch_size, config.patch_size),
    arguments=_hunyuan_arguments,
    pooled_key="pooled_projection_dim",
)
MOCHI = VideoModel(
    "MochiTransformer3DModel",
    "text_embed_dim",
    lambda config: (1, config.patch_size, config.patch_size),
    arguments=_all_count,
    # Its time rises from noise to clip, and it predicts the velocity in that direction.
    time=lambda time_B: 1000 - time_B,
    sign=-1,
)
COSMOS = VideoModel(
    "CosmosTransformer3DModel",
    "text_embed_dim",
    lambda config: tuple(config.patch_size),
    arguments=_cosmos_arguments,
    cross_attention=(".attn2.",),
    time=lambda time_B: time_B / 1000,
)
