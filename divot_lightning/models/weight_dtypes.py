"""The dtypes of a language model's weights: trained weights are float32, whatever dtype is stored in the folder.

A step of AdamW at a learning rate of 1e-4 moves a weight of 1 by about 1e-4. Its neighbours in bfloat16 are 4e-3 and
8e-3 away, so the step is rounded away: normalisation weights of a bfloat16 model never move. Under DeepSpeed in half
precision the optimizer keeps float32 copies (`divot_lightning.models.weights.has_masters`), and these
functions leave the dtypes to it.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import nn

from divot_lightning.models.weights import StoredTensor, has_masters, is_sharded

FrozenDtype: TypeAlias = Literal["float32", "stored"]

HALF = (torch.bfloat16, torch.float16)
_ADAPTERS = "lora_"
"""Part of the names of adapters' weights, which PEFT keeps in float32 beside a model in half precision."""


def raise_to_float32(module: nn.Module) -> None:
    """Convert trained weights in half precision to float32, unless the optimizer has float32 copies of them.

    Args:
        module: Changed in place; parameters that require no gradient stay as they are.
    """
    if has_masters():
        return
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype in HALF and not is_sharded(parameter):
            parameter.data = parameter.data.float()


def lower_to_stored(module: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Convert frozen weights to the dtypes of their files, so that weights in half precision stay in it when loaded.

    Args:
        module: Changed in place; trained parameters stay float32.
        stored: Where its tensors are, by their names.
    """
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad and name in stored:
            dtype = stored[name].read().dtype
            parameter.data = parameter.data.to(dtype if dtype in HALF else torch.float32)


def lower_for_inference(language_model: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert a language model that is no longer trained back to the half precision of its pretrained weights.

    Args:
        language_model: With or without adapters; adapters stay float32.
        dtype: Dtype of the pretrained weights; nothing is done unless it is a half precision.
    """
    if dtype not in HALF:
        return
    for name, parameter in language_model.named_parameters():
        if _ADAPTERS not in name and not is_sharded(parameter):
            parameter.data = parameter.data.to(dtype)


@contextmanager
def merging_in_float32(layer: nn.Module) -> Generator[None, None, None]:
    """Keep the weights of a layer in float32 while adapters are merged into them: the sum is rounded once at most.

    Afterwards the weights are float32; under DeepSpeed in half precision they get their former dtype back.

    Args:
        layer: A tuner layer of PEFT.
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
