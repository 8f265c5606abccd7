"""Convert weight names of the released checkpoints (TencentARC/Divot) to those of this package.

A table maps patterns of released names to patterns of our names. ``{layer}`` and ``{kind}`` match one part of a dotted
name (a layer's number, "weight" or "bias") and mean the same on both sides. Only names differ here; `conversion` fits
the shapes.
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
    compiled = [(re.compile(_as_regex(pattern)), template) for pattern, template in table.ours_by_released.items()]
    renamed = {name: _rename(name, compiled) for name in own}
    unknown = [name for name, new in renamed.items() if new is None]
    if unknown:
        raise UserError(
            f"released {table.part}: {len(unknown)} of {len(own)} names are not in the model, "
            f"such as {', '.join(repr(name) for name in unknown[:3])}; is this the right checkpoint?"
        )
    return {new: own[name] for name, new in renamed.items() if new is not None}


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
