"""The tokenizer's image encoder: any CLIP vision model of transformers, which turns a frame into patch features.

Letters: B batch, F frames, N images, P patches per image, C channels, H W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from divot_lightning.errors import UserError
from divot_lightning.models.transformer_block import check_heads

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean that CLIP models subtract from RGB channels in [0, 1]."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation that CLIP models divide RGB channels in [0, 1] by."""


@dataclass(kw_only=True)
class VisionConfig:
    """The ViT that encodes the frames. The defaults are the sizes of OpenCLIP ViT-H/14, the paper's choice.

    Attributes:
        pretrained: Folder of a transformers CLIP model whose vision part is loaded; its sizes replace those below. None
            builds a ViT of the sizes below with random weights.
        frozen: Whether the ViT is not trained and stays in eval mode, as in the paper.
        image_size: Height and width, in pixels, that frames are resized to.
        patch_size: Height and width of a patch, in pixels; divides ``image_size``.
        width: Channels of a patch feature.
        layers: Number of transformer layers.
        heads: Attention heads per layer; divides ``width``.
        mlp_width: Hidden channels of the layers' MLPs; 0 means four times ``width``.
        activation: Activation of the MLPs, by its transformers name.
        layer_norm_eps: Epsilon of the LayerNorms.
    """

    pretrained: str | None = None
    frozen: bool = True
    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def grid_size(self) -> int:
        """Number of patches along one side of an image."""
        return self.image_size // self.patch_size


def check_vision_config(config: VisionConfig) -> None:
    """Raise UserError if the sizes do not fit together."""
    if config.patch_size < 1 or config.image_size < 1 or config.image_size % config.patch_size:
        raise UserError(
            f"ViT: image_size {config.image_size} does not divide into patches of patch_size {config.patch_size}; "
            "choose an image_size that is a multiple of patch_size"
        )
    if config.layers < 1:
        raise UserError(f"ViT: layers is {config.layers}; it must be at least 1")
    if config.activation not in ACT2FN:
        raise UserError(f"ViT: activation {config.activation!r} is unknown; 'gelu' and 'quick_gelu' are CLIP's")
    check_heads("ViT", config.width, config.heads)


def _blur_kernel(factor: float, width: int, like: Tensor) -> Tensor:
    """Return a Gaussian of ``width`` weights that sum to 1; its standard deviation is at least 0.001 pixels."""
    sigma = max((factor - 1.0) / 2.0, 1e-3)
    offsets = torch.arange(width, dtype=like.dtype, device=like.device) - width // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def _kernel_width(factor: float) -> int:
    """Return an odd width of about four standard deviations, at least 3."""
    return int(max(2.0 * (factor - 1.0), 3.0)) | 1


def _blur_for_shrinking(images_N3HW: Tensor, factors: tuple[float, float]) -> Tensor:
    height, width = _kernel_width(factors[0]), _kernel_width(factors[1])
    pads = (width // 2, width // 2, height // 2, height // 2)
    planes = functional.pad(images_N3HW.flatten(0, 1)[:, None], pads, mode="reflect")
    planes = functional.conv2d(planes, _blur_kernel(factors[0], height, planes)[None, None, :, None])
    planes = functional.conv2d(planes, _blur_kernel(factors[1], width, planes)[None, None, None, :])
    return planes[:, 0].unflatten(0, images_N3HW.shape[:2])


def resize_to_square(images_N3HW: Tensor, size: int) -> Tensor:
    """Resize images as the released encoder does: bicubic with the corner pixels aligned.

    Before shrinking, each axis is blurred with a Gaussian of standard deviation ``(factor - 1) / 2`` pixels, where
    ``factor`` is the old size over the new one. This is not torch's ``antialias=True``, which uses another cubic and
    other pixel centres. Weights work best with the resizing that they were trained with.

    Args:
        images_N3HW: Float, any height and width.
        size: Target height and width in pixels. Images of this size are returned as they are.

    Returns:
        Float (N, 3, size, size).
    """
    height, width = images_N3HW.shape[-2:]
    if (height, width) == (size, size):
        return images_N3HW
    factors = (height / size, width / size)
    if max(factors) > 1.0:
        images_N3HW = _blur_for_shrinking(images_N3HW, factors)
    return functional.interpolate(images_N3HW, (size, size), mode="bicubic", align_corners=True)


def normalize_for_vision_encoder(images_N3HW: Tensor, image_size: int) -> Tensor:
    """Prepare images for a CLIP model: resize them to a square and normalise each channel.

    Args:
        images_N3HW: Float in [-1, 1], any height and width.
        image_size: Target height and width in pixels.

    Returns:
        Float (N, 3, image_size, image_size), about zero mean and unit variance on natural images.
    """
    images_N3HW = resize_to_square(images_N3HW, image_size)
    mean = images_N3HW.new_tensor(CLIP_MEAN)[:, None, None]
    std = images_N3HW.new_tensor(CLIP_STD)[:, None, None]
    return ((images_N3HW + 1.0) / 2.0 - mean) / std


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from listing every weight of a CLIP model's text part as unexpected."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _load_vision_model(folder: str) -> CLIPVisionModel:
    if not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"vision.pretrained: {folder!r} holds no config.json; give a local folder of a transformers CLIP model, "
            "or null to build the ViT from sizes"
        )
    with _quiet_transformers():
        # float32 and not the stored dtype: the trainer decides the precision.
        model, report = CLIPVisionModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    missing = sorted(name for name in report["missing_keys"] if "post_layernorm" not in name)
    if missing:
        raise UserError(
            f"vision.pretrained: {folder!r} lacks {len(missing)} weights of a CLIP vision model, such as "
            f"{missing[0]!r}; give the folder of a CLIP model"
        )
    return model


def _build_vision_model(config: VisionConfig) -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width or 4 * config.width,
            hidden_act=config.activation,
            layer_norm_eps=config.layer_norm_eps,
        )
    )


def _sizes_of(model: CLIPVisionModel, config: VisionConfig) -> VisionConfig:
    sizes: Any = model.config
    return replace(
        config,
        pretrained=None,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_width=sizes.intermediate_size,
        activation=sizes.hidden_act,
        layer_norm_eps=sizes.layer_norm_eps,
    )


def _drop_final_norm(model: CLIPVisionModel) -> None:
    """Remove the LayerNorm that only the pooled output uses, because it would never get a gradient."""
    for module in model.modules():
        if hasattr(module, "post_layernorm"):
            module.post_layernorm = nn.Identity()


class VisionBackbone(nn.Module):
    """Encode each frame by itself to patch features.

    The features are the output of the last layer without the class token. The model's final LayerNorm belongs to its
    pooled output and is removed, so every remaining weight is used.

    The attribute ``config`` holds the sizes in use, with ``pretrained`` None: config and weights are enough to build
    the module again, without the folder of the pretrained model.

    Args:
        config: The ViT, and whether it is trained.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.pretrained is None:
            check_vision_config(config)
            self.model = _build_vision_model(config)
        else:
            self.model = _load_vision_model(config.pretrained)
        self.config = _sizes_of(self.model, config)
        _drop_final_norm(self.model)
        if config.frozen:
            self.requires_grad_(False)
        self.train(True)

    def train(self, mode: bool = True) -> "VisionBackbone":
        """Set the training mode; a frozen ViT always stays in eval mode."""
        return super().train(mode and not self.config.frozen)

    def forward(self, frames_BF3HW: Tensor) -> Tensor:
        """Map frames, float in [-1, 1], to patch features (B, F, P, C), float, unnormalised."""
        pixels = normalize_for_vision_encoder(frames_BF3HW.flatten(0, 1), self.config.image_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            hidden = self.model(pixel_values=pixels).last_hidden_state
        return hidden[:, 1:].unflatten(0, frames_BF3HW.shape[:2])
