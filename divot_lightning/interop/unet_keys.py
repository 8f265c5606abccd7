"""Names of the released U-Net (DynamiCrafter's, and Divot's) and of `DynamiCrafterUNet`.

The released names number the layers of the whole way down and up; ours number levels and layers of a level.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any

from divot_lightning.interop.released_keys import with_prefixes

RELEASED_UNET = "diffusion_model."
"""Prefix of the U-Net in Divot's de-tokenizer; DynamiCrafter's own checkpoint has `model.` in front."""

_LAYER_RULES = {
    "in_layers.0.{kind}": "resnet.norm1.{kind}",
    "in_layers.2.{kind}": "resnet.conv1.{kind}",
    "emb_layers.1.{kind}": "resnet.time_emb_proj.{kind}",
    "out_layers.0.{kind}": "resnet.norm2.{kind}",
    "out_layers.3.{kind}": "resnet.conv2.{kind}",
    "skip_connection.{kind}": "resnet.conv_shortcut.{kind}",
    "temopral_conv.{conv}.{part}.{kind}": "temporal_conv.{conv}.{part}.{kind}",
}
"""Residual and temporal convolutions; `temopral` is spelled so in the released files."""

_TRANSFORMER_RULES = {
    "norm.{kind}": "norm.{kind}",
    "proj_in.{kind}": "proj_in.{kind}",
    "transformer_blocks.{block}.norm1.{kind}": "blocks.{block}.norm1.{kind}",
    "transformer_blocks.{block}.norm2.{kind}": "blocks.{block}.norm2.{kind}",
    "transformer_blocks.{block}.norm3.{kind}": "blocks.{block}.norm3.{kind}",
    "transformer_blocks.{block}.ff.net.0.proj.{kind}": "blocks.{block}.ff.net.0.proj.{kind}",
    "transformer_blocks.{block}.ff.net.2.{kind}": "blocks.{block}.ff.net.2.{kind}",
    "transformer_blocks.{block}.{attn}.to_q.weight": "blocks.{block}.{attn}.to_q.weight",
    "transformer_blocks.{block}.{attn}.to_k.weight": "blocks.{block}.{attn}.to_k.weight",
    "transformer_blocks.{block}.{attn}.to_v.weight": "blocks.{block}.{attn}.to_v.weight",
    "transformer_blocks.{block}.{attn}.to_out.0.{kind}": "blocks.{block}.{attn}.to_out.0.{kind}",
    "proj_out.{kind}": "proj_out.{kind}",
}

_SPATIAL_RULES = {
    **_TRANSFORMER_RULES,
    "transformer_blocks.{block}.attn2.to_k_ip.weight": "blocks.{block}.attn2.second.to_k.weight",
    "transformer_blocks.{block}.attn2.to_v_ip.weight": "blocks.{block}.attn2.second.to_v.weight",
    "transformer_blocks.{block}.attn2.alpha": "blocks.{block}.attn2.gate",
}

_ENDS_RULES = {
    "time_embed.0.{kind}": "time_embedding.linear_1.{kind}",
    "time_embed.2.{kind}": "time_embedding.linear_2.{kind}",
    # So in DynamiCrafter's first checkpoints; later, and in Divot's, it is the name below, to which ours leads back.
    "framestride_embed.0.{kind}": "frame_stride_embedding.linear_1.{kind}",
    "framestride_embed.2.{kind}": "frame_stride_embedding.linear_2.{kind}",
    "fps_embedding.0.{kind}": "frame_stride_embedding.linear_1.{kind}",
    "fps_embedding.2.{kind}": "frame_stride_embedding.linear_2.{kind}",
    "input_blocks.0.0.{kind}": "conv_in.{kind}",
    **with_prefixes(_TRANSFORMER_RULES, "init_attn.0.", "input_transformer."),
    "out.0.{kind}": "norm_out.{kind}",
    "out.2.{kind}": "conv_out.{kind}",
}


def unet_rules(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the patterns of released names of a U-Net and of ours.

    Args:
        config: The config of the `DynamiCrafterUNet`.
    """
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    attends = [level in config["attention_levels"] for level in range(levels)]
    rules = dict(_ENDS_RULES)
    released = count(1)
    for level in range(levels):
        for layer in range(layers):
            rules |= _layer_rules(
                f"input_blocks.{next(released)}.", f"down_levels.{level}.layers.{layer}.", attends[level]
            )
        if level < levels - 1:
            rules[f"input_blocks.{next(released)}.0.op.{{kind}}"] = f"down_levels.{level}.downsample.{{kind}}"
    rules |= _layer_rules("middle_block.", "mid_layers.0.", True)
    rules |= with_prefixes(_LAYER_RULES, "middle_block.3.", "mid_layers.1.")
    released = count(0)
    for position, level in enumerate(reversed(range(levels))):
        for layer in range(layers + 1):
            number = next(released)
            rules |= _layer_rules(f"output_blocks.{number}.", f"up_levels.{position}.layers.{layer}.", attends[level])
        if level > 0:
            # The last part of the released block, after the convolutions and, where it has them, two transformers.
            theirs = f"output_blocks.{number}.{3 if attends[level] else 1}.conv.{{kind}}"
            rules[theirs] = f"up_levels.{position}.upsample.conv.{{kind}}"
    return rules


def _layer_rules(released: str, ours: str, attends: bool) -> dict[str, str]:
    rules = with_prefixes(_LAYER_RULES, f"{released}0.", ours)
    if attends:
        rules |= with_prefixes(_SPATIAL_RULES, f"{released}1.", f"{ours}spatial_transformer.")
        rules |= with_prefixes(_TRANSFORMER_RULES, f"{released}2.", f"{ours}temporal_transformer.")
    return rules
