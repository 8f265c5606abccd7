"""CLIP's vision transformer, the encoder of the paper and of the toy recipes.

Letters: B clips, F frames, P patches per frame, C channels, H W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.activations import ACT2FN

from divot_backbones.vision.loading import load_vision_model
from divot_backbones.vision.pixels import normalize, resize_as_released
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.positions import sin_cos_positions
from divot_lightning.models.transformer_block import check_heads
from divot_lightning.parts.vision_encoders import VisionEncoder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean that CLIP models subtract from RGB channels in [0, 1]."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation that CLIP models divide RGB channels in [0, 1] by."""


class ClipVision(VisionEncoder):
    """Encodes each frame by itself, with the ViT of any CLIP model; the default sizes are OpenCLIP ViT-H/14's.

    The features are the output of the last layer without the class token. The model's final LayerNorm belongs to its
    pooled output and is removed, so every remaining weight is used.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        revision: str | None = None,
        frozen: bool = True,
        image_size: int = 224,
        patch_size: int = 14,
        width: int = 1280,
        layers: int = 32,
        heads: int = 16,
        mlp_width: int = 0,
        activation: str = "gelu",
        layer_norm_eps: float = 1e-5,
    ) -> None:
        """Build the ViT.

        Args:
            pretrained: Folder or hub name of a transformers CLIP model whose vision part is loaded; its sizes replace
                those below. None builds a ViT of the sizes below with random weights.
            revision: Branch, tag or commit of a model of the hub.
            frozen: Whether the ViT is not trained and stays in eval mode, as in the paper.
            image_size: Height and width, in pixels, that frames are resized to.
            patch_size: Height and width of a patch, in pixels; divides `image_size`.
            width: Channels of a patch feature.
            layers: Number of transformer layers.
            heads: Attention heads per layer; divides `width`.
            mlp_width: Hidden channels of the layers' MLPs; 0 means four times `width`.
            activation: Activation of the MLPs, by its transformers name.
            layer_norm_eps: Epsilon of the LayerNorms.
        """
        super().__init__(frozen)
        if pretrained is None:
            require_at_least(0, "ViT: ", mlp_width=mlp_width, layer_norm_eps=layer_norm_eps)
            _check_sizes(image_size, patch_size, width, layers, heads, activation)
            self.model = CLIPVisionModel(
                CLIPVisionConfig(
                    image_size=image_size,
                    patch_size=patch_size,
                    hidden_size=width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    intermediate_size=mlp_width or 4 * width,
                    hidden_act=activation,
                    layer_norm_eps=layer_norm_eps,
                )
            )
        else:
            self.model = load_vision_model(CLIPVisionModel, pretrained, revision, ["post_layernorm"])
            self.source = pretrained
        self.init_args = {"pretrained": None, "revision": None, "frozen": frozen, **_sizes_of(self.model)}
        _drop_final_norm(self.model)
        sizes: Any = self.model.config
        side = sizes.image_size // sizes.patch_size
        self.describe(patch_dim=sizes.hidden_size, grid=(side, side), image_size=sizes.image_size)

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        """Return the patch features of each frame, (B, F, P, C), unnormalised; see `VisionEncoder.encode`."""
        images_N3HW = resize_as_released(frames_BF3HW.flatten(0, 1), self.image_size)
        hidden = self.model(pixel_values=normalize(images_N3HW, CLIP_MEAN, CLIP_STD)).last_hidden_state
        return hidden[:, 1:].unflatten(0, frames_BF3HW.shape[:2])

    @torch.no_grad()
    def init_from_scratch(self) -> None:
        """Initialise the layers as torch does by default, and the position embeddings as sines and cosines.

        Pretrained weights stay as they are.
        """
        if self.source is not None:
            return
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
        embedding = self.model.get_submodule("embeddings.position_embedding")
        assert isinstance(embedding, nn.Embedding)
        # Row 0 belongs to the class token.
        embedding.weight[1:] = sin_cos_positions((1, *self.grid), embedding.embedding_dim)


def _check_sizes(image_size: int, patch_size: int, width: int, layers: int, heads: int, activation: str) -> None:
    """Raise UserError if the sizes do not fit together."""
    if patch_size < 1 or image_size < 1 or image_size % patch_size:
        raise UserError(
            f"ViT: image_size {image_size} does not divide into patches of patch_size {patch_size}; "
            "choose an image_size that is a multiple of patch_size"
        )
    require_at_least(1, "ViT: ", layers=layers)
    if activation not in ACT2FN:
        raise UserError(f"ViT: activation {activation!r} is unknown; 'gelu' and 'quick_gelu' are CLIP's")
    check_heads("ViT", width, heads)


def _sizes_of(model: nn.Module) -> dict[str, Any]:
    sizes: Any = model.config
    return {
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "width": sizes.hidden_size,
        "layers": sizes.num_hidden_layers,
        "heads": sizes.num_attention_heads,
        "mlp_width": sizes.intermediate_size,
        "activation": sizes.hidden_act,
        "layer_norm_eps": sizes.layer_norm_eps,
    }


def _drop_final_norm(model: nn.Module) -> None:
    """Remove the LayerNorm that only the pooled output uses, because it would never get a gradient."""
    for module in model.modules():
        if hasattr(module, "post_layernorm"):
            module.post_layernorm = nn.Identity()
