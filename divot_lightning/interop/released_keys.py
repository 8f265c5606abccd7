"""Convert weight names between the released checkpoints (TencentARC/Divot) and this package.

A table maps patterns of released names to patterns of our names. ``{layer}`` and ``{kind}`` match one part of a dotted
name (a layer's number, "weight" or "bias") and mean the same on both sides, so a table works in both directions. Only
names differ here; `conversion` fits the shapes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from divot_lightning.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class KeyTable:
    """Names of one released part.

    Attributes:
        part: Name of the part, for messages.
        ours_by_released: Pattern of released names -> pattern of our names.
        ignored: Prefix of released names that are not used -> why.
    """

    part: str
    ours_by_released: Mapping[str, str]
    ignored: Mapping[str, str] = field(default_factory=dict)


def from_released(state_dict: Mapping[str, Value], table: KeyTable) -> dict[str, Value]:
    """Rename released weights to ours.

    Args:
        state_dict: Released name -> tensor.
        table: Names of the part; names that it ignores are dropped.

    Returns:
        Our name -> the same tensor.

    Raises:
        UserError: A name is neither in the table nor ignored.
    """
    own = {name: value for name, value in state_dict.items() if not name.startswith(tuple(table.ignored))}
    return _renamed(own, table.ours_by_released, f"released {table.part}")


def to_released(state_dict: Mapping[str, Value], table: KeyTable) -> dict[str, Value]:
    """Rename our weights to the released names: the inverse of ``from_released``."""
    released_by_ours = {ours: released for released, ours in table.ours_by_released.items()}
    return _renamed(state_dict, released_by_ours, table.part)


def _renamed(state_dict: Mapping[str, Value], patterns: Mapping[str, str], owner: str) -> dict[str, Value]:
    compiled = [(re.compile(_as_regex(pattern)), template) for pattern, template in patterns.items()]
    renamed = {name: _rename(name, compiled) for name in state_dict}
    unknown = [name for name, new in renamed.items() if new is None]
    if unknown:
        raise UserError(
            f"{owner}: {len(unknown)} of {len(state_dict)} names are not in the model, "
            f"such as {', '.join(repr(name) for name in unknown[:3])}; is this the right checkpoint?"
        )
    return {new: state_dict[name] for name, new in renamed.items() if new is not None}


def _as_regex(pattern: str) -> str:
    return re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(pattern))


def _rename(name: str, compiled: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for regex, template in compiled:
        found = regex.fullmatch(name)
        if found:
            return template.format(**found.groupdict())
    return None


def with_prefixes(rules: Mapping[str, str], released: str, ours: str) -> dict[str, str]:
    """Return the patterns with a prefix on either side."""
    return {released + theirs: ours + mine for theirs, mine in rules.items()}


RESAMPLER_RULES = {
    "latents": "queries",
    "proj_in.{kind}": "input_projection.{kind}",
    "layers.{layer}.0.norm1.{kind}": "layers.{layer}.attention.input_norm.{kind}",
    "layers.{layer}.0.norm2.{kind}": "layers.{layer}.attention.query_norm.{kind}",
    "layers.{layer}.0.to_q.weight": "layers.{layer}.attention.to_query.weight",
    "layers.{layer}.0.to_kv.weight": "layers.{layer}.attention.to_key_value.weight",
    "layers.{layer}.0.to_out.weight": "layers.{layer}.attention.out.weight",
    "layers.{layer}.1.0.{kind}": "layers.{layer}.ff_norm.{kind}",
    "layers.{layer}.1.1.weight": "layers.{layer}.ff_in.weight",
    "layers.{layer}.1.3.weight": "layers.{layer}.ff_out.weight",
    "proj_out.{kind}": "output_projection.{kind}",
    "norm_out.{kind}": "output_norm.{kind}",
}

_TEMPORAL_RULES = {
    "positional_embedding": "frame_positions",
    "input_proj.{kind}": "input_projection.{kind}",
    "transformer.resblocks.{layer}.ln_1.{kind}": "blocks.{layer}.attention_norm.{kind}",
    "transformer.resblocks.{layer}.attn.in_proj_weight": "blocks.{layer}.attention.qkv.weight",
    "transformer.resblocks.{layer}.attn.in_proj_bias": "blocks.{layer}.attention.qkv.bias",
    "transformer.resblocks.{layer}.attn.out_proj.{kind}": "blocks.{layer}.attention.out.{kind}",
    "transformer.resblocks.{layer}.ln_2.{kind}": "blocks.{layer}.mlp_norm.{kind}",
    "transformer.resblocks.{layer}.mlp.c_fc.{kind}": "blocks.{layer}.mlp_in.{kind}",
    "transformer.resblocks.{layer}.mlp.c_proj.{kind}": "blocks.{layer}.mlp_out.{kind}",
    "ln_final.{kind}": "output_norm.{kind}",
    "output_proj.{kind}": "output_projection.{kind}",
}

_SPATIOTEMPORAL_RULES = {
    "pos_embed_spatial": "grid_positions",
    "pos_embed_temporal": "frame_positions",
    "blocks.{layer}.norm1.{kind}": "blocks.{layer}.attention_norm.{kind}",
    "blocks.{layer}.attn.qkv.{kind}": "blocks.{layer}.attention.qkv.{kind}",
    "blocks.{layer}.attn.proj.{kind}": "blocks.{layer}.attention.out.{kind}",
    "blocks.{layer}.norm2.{kind}": "blocks.{layer}.mlp_norm.{kind}",
    "blocks.{layer}.mlp.fc1.{kind}": "blocks.{layer}.mlp_in.{kind}",
    "blocks.{layer}.mlp.fc2.{kind}": "blocks.{layer}.mlp_out.{kind}",
    "norm.{kind}": "norm.{kind}",
}

TOKENIZER = KeyTable(
    part="tokenizer",
    ours_by_released={
        **with_prefixes(_TEMPORAL_RULES, "temporal_encoder.", "temporal."),
        "norm.{kind}": "pooled_norm.{kind}",
        **with_prefixes(_SPATIOTEMPORAL_RULES, "image_proj_model.", "spatiotemporal."),
        **with_prefixes(RESAMPLER_RULES, "image_proj_model.down_sampler.", "to_tokens."),
    },
    ignored={"vit_model.": "the frozen ViT, which is converted by itself"},
)
"""The tokenizer behind its ViT -> ``VideoTokenizer``. The frozen ViT comes from a transformers folder instead."""

CONDITION_RESAMPLER = KeyTable(
    part="condition resampler",
    ours_by_released=with_prefixes(RESAMPLER_RULES, "image_proj_model.", ""),
    ignored={"diffusion_model.": "the U-Net", "first_stage_model.": "the VAE"},
)
"""The resampler in front of the released U-Net -> ``PerceiverResampler``."""

INPUT_PROJECTOR = KeyTable(
    part="input projector",
    ours_by_released={
        "input_resampler.proj.0.{kind}": "hidden.{kind}",
        "input_resampler.proj.2.{kind}": "out.{kind}",
    },
    ignored={"output_resampler.": "the output projector"},
)
"""Tokens to LLM embeddings -> ``mlp_projector``."""

OUTPUT_PROJECTOR = KeyTable(
    part="output projector",
    ours_by_released={
        "output_resampler.proj.0.{kind}": "hidden.{kind}",
        "output_resampler.proj.2.{kind}": "out.{kind}",
    },
    ignored={"input_resampler.": "the input projector"},
)
"""LLM hidden states to the parameters of the Gaussian mixture -> ``mlp_projector``."""
