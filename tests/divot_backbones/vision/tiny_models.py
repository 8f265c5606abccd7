"""Configs of tiny vision models of transformers, by `model_type`; images of 16 x 16 pixels, patches of 4 x 4."""

from typing import Any

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
IMAGES = {**SIZES, "image_size": 16}

TINY: dict[str, dict[str, Any]] = {
    "dinov2": {**IMAGES, "mlp_ratio": 2},
    "dinov2_with_registers": {**IMAGES, "mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {**IMAGES, "intermediate_size": 24, "num_register_tokens": 2},
    "siglip_vision_model": {**IMAGES, "intermediate_size": 24},
    "siglip2_vision_model": {**SIZES, "intermediate_size": 24, "num_patches": 16},
    "vit": {**IMAGES, "intermediate_size": 24},
    "vjepa2": {
        **SIZES,
        "hidden_size": 24,
        "crop_size": 16,
        "frames_per_clip": 4,
        "tubelet_size": 2,
        "mlp_ratio": 2,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    },
}
