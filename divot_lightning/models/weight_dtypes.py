"""The dtypes of a language model's weights: what is trained is float32, whatever its folder holds.

A step of AdamW at a rate of 1e-4 moves a weight of 1 by about 1e-4. Its neighbours in bfloat16 are 4e-3 and 8e-3 away,
so the step is rounded away: normalisation weights of a bfloat16 model never move. Under DeepSpeed in half precision
the optimizer has float32 copies of its own (`divot_lightning.distributed.meta_building.has_masters`), and dtypes are its
business.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from safetensors import safe_open
from torch import nn

from divot_lightning.distributed.meta_building import has_masters, is_sharded

FrozenDtype: TypeAlias = Literal["float32", "stored"]

HALF = (torch.bfloat16, torch.float16)
_STORED_HALF = {"BF16": torch.bfloat16, "F16": torch.float16}
_ADAPTERS = "lora_"
"""In the names of adapters' weights, which PEFT keeps in float32 beside a model in half precision."""


def raise_to_float32(module: nn.Module) -> None:
    """Turn trained weights in half precision into float32, where the optimizer has no float32 copies of them.

    Args:
        module: Parameters that require no gradient are left as they are.
    """
    if has_masters():
        return
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype in HALF and not is_sharded(parameter):
            parameter.data = parameter.data.float()


def lower_to_stored(module: nn.Module, file: Path) -> None:
    """Prepare a module for weights that are to keep the half precision in which a file holds them.

    Args:
        module: Its frozen parameters become of the file's dtypes; what is trained stays float32.
        file: Safetensors.
    """
    with safe_open(str(file), "pt") as stored:
        dtypes = {name: _STORED_HALF.get(stored.get_slice(name).get_dtype()) for name in stored.keys()}  # noqa: SIM118
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad and name in dtypes:
            parameter.data = parameter.data.to(dtypes[name] or torch.float32)


def lower_for_inference(language_model: nn.Module, dtype: torch.dtype | None) -> None:
    """Turn a language model that is not trained any more into the half precision that it came in.

    Args:
        language_model: With or without adapters.
        dtype: That of its pretrained weights; nothing is done where it is none of half precision.
    """
    if dtype not in HALF:
        return
    for name, parameter in language_model.named_parameters():
        if _ADAPTERS not in name and not is_sharded(parameter):
            parameter.data = parameter.data.to(dtype)


@contextmanager
def merging_in_float32(layer: nn.Module) -> Generator[None, None, None]:
    """Have adapters folded into weights of float32, within; what they come to is rounded once, or not at all.

    Under DeepSpeed in half precision the weights are as before afterwards, else float32.

    Args:
        layer: One of PEFT's.
    """
    before = {
        parameter: parameter.dtype
        for parameter in layer.parameters()
        if parameter.dtype in HALF and not is_sharded(parameter)
    }
    for parameter in before:
        parameter.data = parameter.data.float()
    yield
    for parameter, dtype in before.items() if has_masters() else ():
        parameter.data = parameter.data.to(dtype)
