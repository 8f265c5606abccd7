"""What differs between the vision models of transformers: one table, by `model_type`.

Letters: B clips, F frames, T steps in time, L tokens of one forward pass, C channels, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's RGB channels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's RGB channels in [0, 1]."""

Run = Callable[[Any, Tensor], Tensor]
"""Maps a model and normalised pixels_BF3HW to all its tokens, (B, T, L, C)."""


def run_on_images(model: Any, pixels_BF3HW: Tensor) -> Tensor:
    """Run a model that takes images of its own size, or of any size."""
    tokens = model(pixel_values=pixels_BF3HW.flatten(0, 1)).last_hidden_state
    return tokens.unflatten(0, pixels_BF3HW.shape[:2])


def run_on_resized_positions(model: Any, pixels_BF3HW: Tensor) -> Tensor:
    """Run a model on images whose size may differ from its own: it resizes its position embeddings."""
    images_N3HW = pixels_BF3HW.flatten(0, 1)
    tokens = model(pixel_values=images_N3HW, interpolate_pos_encoding=True).last_hidden_state
    return tokens.unflatten(0, pixels_BF3HW.shape[:2])


def run_on_patches(model: Any, pixels_BF3HW: Tensor) -> Tensor:
    """Run a NaFlex model: it takes patches, each as (row, column, channel) of its pixels, and the size of the grid."""
    side = model.config.patch_size
    rows, columns = (size // side for size in pixels_BF3HW.shape[-2:])
    grid = pixels_BF3HW.flatten(0, 1).unflatten(-1, (columns, side)).unflatten(-3, (rows, side))
    patches_NLX = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    # On the CPU, where the model reads the sizes as numbers.
    sizes_N2 = torch.tensor([[rows, columns]], device="cpu").expand(len(patches_NLX), 2)
    output = model(pixel_values=patches_NLX, pixel_attention_mask=None, spatial_shapes=sizes_N2)
    return output.last_hidden_state.unflatten(0, pixels_BF3HW.shape[:2])


def run_on_clips(model: Any, pixels_BF3HW: Tensor) -> Tensor:
    """Run a video model: every `tubelet_size` frames become one step in time, and steps see each other."""
    tokens = model(pixel_values_videos=pixels_BF3HW, skip_predictor=True).last_hidden_state
    return tokens.unflatten(1, (pixels_BF3HW.shape[1] // model.config.tubelet_size, -1))


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        model: Name of the class in transformers.
        run: How the model is called.
        has_class_token: Whether a class token, and the registers if the config has any, come before the patches.
        mean: Mean of the channels in [0, 1], where the model's folder has no `preprocessor_config.json`.
        std: Standard deviation of the channels, likewise.
        size_key: Where the config has the height and width of images; None if it has the number of patches.
        settings: Keys of the config that differ from the checkpoint's, to leave out what patch features do not use.
        unused: Modules and parameters that patch features do not use; they are removed.
        borrowed: Parameters of inner modules that the module around them reads; see `gather_borrowed`.
    """

    model: str
    run: Run
    has_class_token: bool
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size_key: str | None = "image_size"
    settings: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()

    def num_prefix_tokens(self, config: Any) -> int:
        """Return the number of tokens before the patches."""
        return 1 + getattr(config, "num_register_tokens", 0) if self.has_class_token else 0


_MASK = ("embeddings.mask_token",)
"""Replaces masked patches in the pretraining of DINO."""
_NO_HEAD = {"vision_use_head": False}
"""SigLIP pools its patches with an attention of its own."""
_POSITIONS = ("embeddings.position_embedding.weight",)
"""SigLIP resizes these, without calling the module that holds them."""

FAMILIES: dict[str, Family] = {
    "dinov2": Family("Dinov2Model", run_on_images, True, unused=_MASK),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", run_on_images, True, unused=_MASK),
    "dinov3_vit": Family("DINOv3ViTModel", run_on_images, True, unused=_MASK),
    "siglip_vision_model": Family(
        "SiglipVisionModel",
        run_on_resized_positions,
        False,
        HALF,
        HALF,
        settings=_NO_HEAD,
        unused=("head",),
        borrowed=_POSITIONS,
    ),
    "siglip2_vision_model": Family(
        "Siglip2VisionModel",
        run_on_patches,
        False,
        HALF,
        HALF,
        size_key=None,
        settings=_NO_HEAD,
        unused=("head",),
        borrowed=_POSITIONS,
    ),
    "vit": Family("ViTModel", run_on_resized_positions, True, HALF, HALF, unused=("pooler",)),
    "vjepa2": Family("VJEPA2Model", run_on_clips, False, size_key="crop_size", unused=("predictor",)),
}
"""Families by `model_type`. The fixed-resolution checkpoints of SigLIP 2 have the `model_type` of SigLIP."""

WHOLE_MODELS = {"siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model"}
"""Models with a text part, to the `model_type` of their vision part."""
