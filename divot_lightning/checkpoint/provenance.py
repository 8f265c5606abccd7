"""Folders of frozen weights: recorded instead of stored, and verified before a run is resumed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divot_lightning.checkpoint.folders import damaged_checkpoint
from divot_lightning.checkpoint.module_tensors import ModuleTensors
from divot_lightning.checkpoint.tensor_file import tensor_bytes
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError
from divot_lightning.io.files import text_sha256
from divot_lightning.models.weights import full_shape

PROVENANCE = "provenance.json"

ReadTensor = Callable[[Tensor, int], Tensor | None]
"""Returns a whole tensor on one rank; all ranks call it together."""


class Digest(NamedTuple):
    """Hashes of a tensor.

    Attributes:
        exact: Hash of its content in the precision it has.
        rounded: Hash of its content in bfloat16, which is the same for the same weights in another precision.
    """

    exact: str
    rounded: str


def describe_frozen(tensors: ModuleTensors, read: ReadTensor, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Hash the frozen modules of a stage that came from folders; each rank hashes a part of the tensors.

    The result does not depend on how tensors are sharded or on their order.

    Args:
        tensors: The tensors of the stage.
        read: Returns a tensor on the rank that hashes it.
        ranks: All processes that take part.

    Returns:
        For each module its source, its number of tensors, their precisions and both hashes.
    """
    named = [(module, name, p) for module, members in tensors.sourced.items() for name, p in members.items()]
    mine: dict[tuple[str, str], Digest] = {}
    for number, (module, name, parameter) in enumerate(named):
        owner = number % ranks.size
        value = read(parameter, owner)
        if owner == ranks.rank:
            assert value is not None
            mine[module, name] = digest(value)
    every = {key: found for part in ranks.gather(mine) for key, found in part.items()}
    return {
        module: {
            "source": tensors.sources[module],
            "tensors": len(members),
            "precision": sorted({str(p.dtype).removeprefix("torch.") for p in members.values()}),
            "sha256": _combine((name, full_shape(p), every[module, name].exact) for name, p in members.items()),
            "sha256_bfloat16": _combine(
                (name, full_shape(p), every[module, name].rounded) for name, p in members.items()
            ),
        }
        for module, members in tensors.sourced.items()
        if members
    }


def digest(tensor: Tensor) -> Digest:
    """Hash a tensor.

    >>> value = torch.tensor([1.0, 2.0])
    >>> digest(value).rounded == digest(value.bfloat16()).exact
    True
    """
    exact = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    if not tensor.is_floating_point() or tensor.dtype == torch.bfloat16:
        return Digest(exact, exact)
    return Digest(exact, hashlib.sha256(tensor_bytes(tensor.bfloat16())).hexdigest())


def verify_frozen(stored: dict[str, dict[str, Any]], live: dict[str, dict[str, Any]]) -> None:
    """Compare the frozen modules of a run with those its checkpoint was made with.

    Args:
        stored: From the checkpoint.
        live: From this run.

    Raises:
        UserError: A module holds other weights, or is frozen in one of the two only.
    """
    for module in sorted({*stored, *live}):
        then, now = stored.get(module), live.get(module)
        if then is None or now is None:
            there = "is not frozen in the checkpoint" if then is None else "was frozen and is not any more"
            raise UserError(
                f"{module} {there}, so its weights cannot be restored\n"
                "continue with the settings it was trained with, or start a new run"
            )
        key = "sha256" if then["precision"] == now["precision"] else "sha256_bfloat16"
        if then[key] != now[key]:
            raise UserError(
                f"{module} holds other frozen weights than this run was trained with\n"
                f"then: {then['source']}, {then['tensors']} tensors, {key} {then[key][:16]}...\n"
                f"now:  {now['source']}, {now['tensors']} tensors, {key} {now[key][:16]}...\n"
                "give the folder it was trained with, or start a new run"
            )


class FrozenRecord:
    """Describes the frozen modules of a stage, and hashes them again only when a weight has changed."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] | None = None
        self._described: dict[str, dict[str, Any]] = {}

    def describe(self, tensors: ModuleTensors, read: ReadTensor, ranks: Ranks) -> dict[str, dict[str, Any]]:
        """Describe the frozen modules; arguments and result as for `describe_frozen`."""
        seen = [
            (value.data_ptr(), value._version)
            for members in tensors.sourced.values()
            for parameter in members.values()
            for value in [getattr(parameter, "ds_tensor", parameter)]
        ]
        # Whether to hash again must be the same for all, since they read tensors together.
        if any(ranks.gather(seen != self._seen)):
            self._described = describe_frozen(tensors, read, ranks)
            self._seen = seen
        return self._described


def read_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what a checkpoint recorded.

    Raises:
        UserError: It is no such record.
    """
    try:
        content = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        return {str(module): {**facts} for module, facts in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise damaged_checkpoint(folder, f"{PROVENANCE} holds no record of frozen weights") from error


def _combine(parts: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    lines = sorted(f"{name} {list(shape)} {content}\n" for name, shape, content in parts)
    return text_sha256("".join(lines))
