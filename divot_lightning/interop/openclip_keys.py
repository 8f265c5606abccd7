"""Names of OpenCLIP's ViT-H/14 and of the `CLIPModel` of transformers.

OpenCLIP keeps the projections of queries, keys and values in one matrix, and its last projections transposed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from divot_lightning.interop.released_keys import KeyTable, with_prefixes

VIT_H_14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}
"""Config of OpenCLIP's ViT-H-14 as a `CLIPModel`."""

_LAYER_RULES = {
    "resblocks.{layer}.ln_1.{kind}": "layers.{layer}.layer_norm1.{kind}",
    "resblocks.{layer}.attn.q_proj.{kind}": "layers.{layer}.self_attn.q_proj.{kind}",
    "resblocks.{layer}.attn.k_proj.{kind}": "layers.{layer}.self_attn.k_proj.{kind}",
    "resblocks.{layer}.attn.v_proj.{kind}": "layers.{layer}.self_attn.v_proj.{kind}",
    "resblocks.{layer}.attn.out_proj.{kind}": "layers.{layer}.self_attn.out_proj.{kind}",
    "resblocks.{layer}.ln_2.{kind}": "layers.{layer}.layer_norm2.{kind}",
    "resblocks.{layer}.mlp.c_fc.{kind}": "layers.{layer}.mlp.fc1.{kind}",
    "resblocks.{layer}.mlp.c_proj.{kind}": "layers.{layer}.mlp.fc2.{kind}",
}

VIT_RULES = {
    "visual.class_embedding": "embeddings.class_embedding",
    "visual.positional_embedding": "embeddings.position_embedding.weight",
    "visual.conv1.weight": "embeddings.patch_embedding.weight",
    "visual.ln_pre.{kind}": "pre_layrnorm.{kind}",
    **with_prefixes(_LAYER_RULES, "visual.transformer.", "encoder."),
}
"""The layers that give patch features, -> `CLIPVisionModel`; `pre_layrnorm` is spelled so in transformers."""

CLIP = KeyTable(
    "CLIP model",
    {
        **with_prefixes(VIT_RULES, "", "vision_model."),
        "visual.ln_post.{kind}": "vision_model.post_layernorm.{kind}",
        "visual.proj": "visual_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        **with_prefixes(_LAYER_RULES, "transformer.", "text_model.encoder."),
        "ln_final.{kind}": "text_model.final_layer_norm.{kind}",
        "text_projection": "text_projection.weight",
        "logit_scale": "logit_scale",
    },
    {"attn_mask": "the causal mask, which transformers computes"},
)
"""OpenCLIP -> `CLIPModel`, after `split_projections`."""

NOT_FOR_PATCHES = {
    "visual.ln_post.": "last norm of the ViT: only its pooled output uses it",
    "visual.proj": "projection of the ViT's pooled output",
    "transformer.": "text encoder of CLIP",
    "token_embedding.": "text encoder of CLIP",
    "positional_embedding": "text encoder of CLIP",
    "ln_final.": "text encoder of CLIP",
    "text_projection": "text encoder of CLIP",
    "logit_scale": "text encoder of CLIP",
    "attn_mask": "text encoder of CLIP",
}
"""Prefixes of the names that patch features do not need -> what they are."""

_TRANSPOSED = ("visual.proj", "text_projection")


def split_projections(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joint projections of queries, keys and values, and transpose the last projections."""
    split: dict[str, Tensor] = {}
    for name, value in released.items():
        owner, joint, kind = name.rpartition(".in_proj_")
        if joint:
            split |= {f"{owner}.{part}_proj.{kind}": rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[name] = value.T if name in _TRANSPOSED else value
    return split
