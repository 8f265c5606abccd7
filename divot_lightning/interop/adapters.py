"""Merge low-rank adapters, in the names of PEFT, into the weights of a language model."""

import re
from collections.abc import Mapping

from torch import Tensor

from divot_lightning.errors import UserError

RELEASED_ALPHA = 32
"""Scale of the released adapters, whose rank is 32 too (`configs/clm_models/mistral7b_lora.yaml`)."""

_WRAPPERS = re.compile(r"^(?:llm\.)?(?:base_model\.model\.)?")
"""What Divot's agent and PEFT put in front of the names of the language model."""

_ADAPTER_NAME = re.compile(r"\.(lora_[AB]|modules_to_save)\.default(?=\.|$)")
"""PEFT names an adapter, always `default` here, in a training checkpoint and not in a saved adapter."""


def merge_adapters(
    base: Mapping[str, Tensor], adapted: Mapping[str, Tensor], alpha: float, file: str
) -> dict[str, Tensor]:
    """Return the weights of a language model with its adapters merged and its fully trained layers in place.

    Args:
        base: Name in transformers -> weight, as the model was before.
        adapted: Names of PEFT, with or without the prefixes of a training checkpoint. Weights without an adapter, and
            the base layers of adapters, replace those of `base`.
        alpha: The adapters' product is scaled by alpha / rank.
        file: Where the adapters come from, for messages.

    Returns:
        Name in transformers -> weight; merged weights are float32, others keep their dtype.

    Raises:
        UserError: Half of an adapter, or the weight that it changes, is missing, or their sizes do not fit.
    """
    names = {_ADAPTER_NAME.sub(r".\1", _WRAPPERS.sub("", name)): value for name, value in adapted.items()}
    # The layer as it was before: `modules_to_save` holds the trained copy.
    plain = {name: value for name, value in names.items() if ".lora_" not in name and ".original_module." not in name}
    merged = {**base}
    for name in sorted(plain, key=lambda name: ".modules_to_save." in name):
        merged[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = plain[name]
    for layer in sorted({name.partition(".lora_")[0] for name in names if ".lora_" in name}):
        down, up = (names.get(f"{layer}.lora_{half}.weight") for half in "AB")
        weight = merged.get(f"{layer}.weight")
        if down is None or up is None or weight is None:
            raise UserError(f"{file}: the adapter of {layer} has no A, no B or no weight that it changes")
        if (len(up), down.shape[1], up.shape[1]) != (*weight.shape, len(down)):
            sizes = ", ".join(str(tuple(value.shape)) for value in (down, up, weight))
            raise UserError(f"{file}: the adapter of {layer} does not fit: A, B and the weight are {sizes}")
        merged[f"{layer}.weight"] = weight.float() + (alpha / len(down)) * (up.float() @ down.float())
    return merged
