"""Read checkpoint files of other projects: tensors only, no code in them is run."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from divot_lightning.errors import UserError, first_line

_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights of a transformers folder; the former are taken if both are there."""

_NESTED = ("state_dict", "module", "model")
"""Keys under which trainers keep the weights beside their own state."""

_DEEPSPEED = "_forward_module."
"""What DeepSpeed, under Lightning, puts in front of all names."""


def read_released(file: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, `torch.save`'s or safetensors.

    Args:
        file: The file; its tensors are mapped into memory, not copied, where its format allows.

    Returns:
        Name -> tensor, on the CPU, in the stored dtype.

    Raises:
        UserError: The file is missing, damaged or cut off, holds something else than tensors, or needs code to be run.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"there is no file {file}\ngive the path of a downloaded checkpoint")
    try:
        stored = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
    except Exception as error:  # a damaged pickle raises whatever its bytes ask for
        # torch's own text advises to run the code of the file.
        reason = "UnpicklingError" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise UserError(
            f"{file} cannot be read as a checkpoint: {reason}\n"
            "it is damaged, cut off, or holds more than weights; compare its size and hash with the source and "
            "download it again"
        ) from error
    weights = _unwrap(stored)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{file} holds no weights by name; give a checkpoint that does")
    return {name.removeprefix(_DEEPSPEED): value for name, value in weights.items()}


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """Read the weights of a transformers folder: one file, or several that an index lists.

    Args:
        folder: With `model.safetensors` or `pytorch_model.bin`, or an index of either and its files.

    Raises:
        UserError: As `read_released`; or there are no weights, or the index is damaged or lists other names than the
            files hold.
    """
    folder = Path(folder)
    indexes = [file for name in _WHOLE_FILES if (file := folder / f"{name}.index.json").is_file()]
    if not indexes:
        file = next((file for name in _WHOLE_FILES if (file := folder / name).is_file()), folder / _WHOLE_FILES[0])
        return read_released(file)
    try:
        listed: dict[str, str] = json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{indexes[0]} is damaged ({type(error).__name__}); download it again") from error
    weights: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        weights |= read_released(folder / Path(name).name)
    missing = sorted(listed.keys() - weights.keys())
    if missing:
        raise UserError(f"{folder / listed[missing[0]]} lacks {missing[0]}, which {indexes[0].name} lists")
    return weights


def _load_pickle(file: Path) -> Any:
    # The format before torch 1.6 is no zip archive and cannot be mapped.
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def _unwrap(stored: Any) -> Mapping[str, Any]:
    while isinstance(stored, Mapping):
        inner = next((stored[key] for key in _NESTED if isinstance(stored.get(key), Mapping)), None)
        if inner is None:
            return stored
        stored = inner
    return {}
