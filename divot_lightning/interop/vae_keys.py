"""Names of Stable Diffusion's VAE in its original checkpoints, and of the `AutoencoderKL` of `diffusers`."""

from divot_lightning.interop.released_keys import with_prefixes

RELEASED_VAE = "first_stage_model."
"""Prefix of the VAE in a file that holds a whole diffusion model."""

VAE_IGNORED = {f"{RELEASED_VAE}loss.": "loss of the VAE's own training"}

SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
"""Config of Stable Diffusion's VAE as an `AutoencoderKL`."""

_BLOCK_RULES = {
    "norm1.{kind}": "norm1.{kind}",
    "conv1.{kind}": "conv1.{kind}",
    "norm2.{kind}": "norm2.{kind}",
    "conv2.{kind}": "conv2.{kind}",
    "nin_shortcut.{kind}": "conv_shortcut.{kind}",
}

_ATTENTION_RULES = {
    "norm.{kind}": "group_norm.{kind}",
    "q.{kind}": "to_q.{kind}",
    "k.{kind}": "to_k.{kind}",
    "v.{kind}": "to_v.{kind}",
    "proj_out.{kind}": "to_out.0.{kind}",
}

_COMMON_RULES = {
    "conv_in.{kind}": "conv_in.{kind}",
    **with_prefixes(_BLOCK_RULES, "mid.block_1.", "mid_block.resnets.0."),
    **with_prefixes(_ATTENTION_RULES, "mid.attn_1.", "mid_block.attentions.0."),
    **with_prefixes(_BLOCK_RULES, "mid.block_2.", "mid_block.resnets.1."),
    "norm_out.{kind}": "conv_norm_out.{kind}",
    "conv_out.{kind}": "conv_out.{kind}",
}

_ENCODER_RULES = {
    **_COMMON_RULES,
    **with_prefixes(_BLOCK_RULES, "down.{level}.block.{layer}.", "down_blocks.{level}.resnets.{layer}."),
    "down.{level}.downsample.conv.{kind}": "down_blocks.{level}.downsamplers.0.conv.{kind}",
}


def vae_rules(levels: int) -> dict[str, str]:
    """Return the patterns of original names and of those of `diffusers`; attention weights are 1x1 convolutions there.

    Args:
        levels: Number of levels; the original numbers those of the decoder from the pixels, `diffusers` from the
            latents.
    """
    decoder = dict(_COMMON_RULES)
    for level in range(levels):
        ours = f"up_blocks.{levels - 1 - level}."
        decoder |= with_prefixes(_BLOCK_RULES, f"up.{level}.block.{{layer}}.", f"{ours}resnets.{{layer}}.")
        decoder[f"up.{level}.upsample.conv.{{kind}}"] = f"{ours}upsamplers.0.conv.{{kind}}"
    return {
        **with_prefixes(_ENCODER_RULES, "encoder.", "encoder."),
        **with_prefixes(decoder, "decoder.", "decoder."),
        "quant_conv.{kind}": "quant_conv.{kind}",
        "post_quant_conv.{kind}": "post_quant_conv.{kind}",
    }
