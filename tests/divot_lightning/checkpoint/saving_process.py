"""Saves checkpoints until it is killed; imports little, so that many processes can be started."""

from pathlib import Path
from typing import Any

import torch

from divot_lightning.checkpoint.folder_writing import Entry, save_folder
from divot_lightning.checkpoint.folders import (
    CHECKPOINTS,
    checkpoint_name,
    checkpoint_step,
    complete_checkpoints,
    remove_folder,
    remove_leftovers,
)
from divot_lightning.checkpoint.tensor_file import TensorSpec
from divot_lightning.distributed.ranks import Ranks


def keep_saving(run: str, started: Any) -> None:
    """Save one checkpoint after the other, each replacing the one before, until the process is killed.

    Args:
        run: The run folder; continues after its newest checkpoint.
        started: Is set when saving begins.
    """
    torch.set_num_threads(1)
    checkpoints = Path(run) / CHECKPOINTS
    remove_leftovers(checkpoints)
    before = complete_checkpoints(Path(run))
    step = checkpoint_step(before[0]) if before else 0
    started.set()
    while True:
        step += 1
        save_numbered(checkpoints / checkpoint_name(step), step)
        for folder in complete_checkpoints(Path(run))[1:]:
            remove_folder(folder)


def save_numbered(folder: Path, step: int) -> None:
    """Save a checkpoint all of whose contents are made from its step."""
    values = {f"layer{number}": torch.full((40, 50), float(step + number)) for number in range(8)}
    entries = [
        Entry(group, name, TensorSpec(value.dtype, tuple(value.shape)), lambda owner, value=value: value)
        for group in ("weights", "optimizer")
        for name, value in values.items()
    ]
    save_folder(folder, entries, state={"step": step}, provenance={}, about={"step": step}, ranks=Ranks())
