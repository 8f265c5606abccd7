"""Loading of checkpoint folders: every expected tensor is there and fits, or an error names those that do not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from divot_lightning.checkpoint.folder_writing import TRAINER
from divot_lightning.checkpoint.folders import damaged_checkpoint
from divot_lightning.checkpoint.manifest import find_damage, require_manifest
from divot_lightning.checkpoint.module_tensors import TensorAccess
from divot_lightning.checkpoint.optimizer_state import check_families
from divot_lightning.checkpoint.provenance import PROVENANCE
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError, problem_lines
from divot_lightning.models.weights import full_shape

STATE_KEYS = ("layout", "loops", "lr_schedulers", "callbacks", "global_step")
"""What `trainer.pt` of every run holds."""


class CheckpointReader:
    """A checkpoint folder whose files were found undamaged.

    Tensors are mapped from their files, not read into memory, until they are used. No file is opened that the manifest
    does not name, and nothing in them can run code.

    Args:
        folder: The checkpoint.
        ranks: The processes that load it together; each checks its part of the files against the manifest.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder = folder
        self.manifest = require_manifest(folder)
        files = self.manifest["files"]
        mine = {name: files[name] for name in ranks.mine(sorted(files))}
        damage = [found for part in ranks.gather(find_damage(folder, mine)) for found in part]
        missing = [f"{name} is missing" for name in (TRAINER, PROVENANCE) if name not in files]
        if damage or missing:
            raise damaged_checkpoint(folder, "; ".join([*damage, *missing][:3]))
        self._files: dict[str, dict[str, Any]] = {}
        for name in sorted(files):
            if name.endswith(".safetensors"):
                opened = _open(folder / name)
                group = self._files.setdefault(name.rpartition("-")[0], {})
                group.update(dict.fromkeys(opened.keys(), opened))

    def names(self, group: str) -> set[str]:
        """Return the names of the tensors of a group, such as "weights"."""
        return set(self._files.get(group, {}))

    def get(self, group: str, name: str) -> Tensor:
        """Map a tensor; it must not be changed."""
        return self._files[group][name].get_tensor(name)

    def state(self) -> dict[str, Any]:
        """Read `trainer.pt`.

        Raises:
            UserError: It holds something that could run code.
        """
        try:
            state: dict[str, Any] = torch.load(self.folder / TRAINER, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{self.folder / TRAINER} is not loaded: it holds more than plain data ({type(error).__name__})\n"
                "it may be damaged or malicious; do not use this checkpoint"
            ) from error
        return state


def require_run_state(reader: CheckpointReader, state: dict[str, Any]) -> None:
    """Refuse a state that a run cannot be resumed from.

    Raises:
        UserError: Keys are missing; the message names them.
    """
    lacking = [key for key in STATE_KEYS if not isinstance(state, dict) or key not in state]
    if lacking:
        what = f"{TRAINER} lacks {', '.join(map(repr, lacking))}: no state of a run of this version"
        raise damaged_checkpoint(reader.folder, what)


def restore_weights(reader: CheckpointReader, access: TensorAccess) -> None:
    """Overwrite the trained parameters, the buffers and the frozen parameters that are stored.

    Raises:
        UserError: A tensor is missing, left over or of another size.
    """
    expected = access.tensors.weights
    sizes = {name: full_shape(value) for name, value in expected.items()}
    check_names(reader.folder, reader.names("weights"), set(expected))
    wrong = []
    for name, value in expected.items():
        stored = reader.get("weights", name)
        if tuple(stored.shape) == sizes[name]:
            access.write(value, stored)
        else:
            wrong.append(f"{name} {tuple(stored.shape)} instead of {sizes[name]}")
    if wrong:
        raise _misfit(reader.folder, {"of another size": wrong})


def restore_optimizers(reader: CheckpointReader, access: TensorAccess, stored: dict[str, dict[str, Any]]) -> None:
    """Set all optimizer states.

    Args:
        reader: The checkpoint.
        access: The stage and its optimizers.
        stored: By parameter, "optimizer" and "states", as `optimizer_record` returned them.

    Raises:
        UserError: Another optimizer trained a parameter, or a state is missing or left over.
    """
    live = access.optimizer_entries()
    check_families(
        {name: entry["optimizer"] for name, entry in stored.items()},
        {name: entry.optimizer for name, entry in live.items()},
    )
    expected = {f"{name}/{key}" for name, entry in stored.items() for key in entry["states"]}
    check_names(reader.folder, reader.names("optimizer"), expected)
    for name, entry in stored.items():
        access.write_states(name, {key: reader.get("optimizer", f"{name}/{key}") for key in entry["states"]})


def optimizer_record(access: TensorAccess) -> dict[str, dict[str, Any]]:
    """Return in plain data which states of which optimizer a checkpoint holds, for `restore_optimizers`."""
    return {
        name: {"optimizer": entry.optimizer, "states": list(entry.states)}
        for name, entry in access.optimizer_entries().items()
    }


def check_names(folder: Path, stored: set[str], expected: set[str]) -> None:
    """Refuse a checkpoint with other tensors than expected.

    Raises:
        UserError: Tensors are missing or left over; the message names them.
    """
    problems = {"not in the checkpoint": sorted(expected - stored), "only in the checkpoint": sorted(stored - expected)}
    if any(problems.values()):
        raise _misfit(folder, problems)


def _misfit(folder: Path, problems: Mapping[str, Sequence[str]]) -> UserError:
    advice = "continue with the settings it was trained with, or start a new run"
    return UserError("\n".join([f"{folder} does not fit this run", *problem_lines(problems), advice]))


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), "pt", device="cpu").__enter__()
    except (OSError, SafetensorError) as error:
        raise damaged_checkpoint(file.parent, f"{file.name} cannot be read as safetensors: {error}") from error
