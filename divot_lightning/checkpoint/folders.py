"""The folders of a run's checkpoints: their names, and which of them are whole. Imports no torch."""

from pathlib import Path
from typing import NamedTuple

from divot_lightning.checkpoint.manifest import find_missing, is_complete
from divot_lightning.errors import UserError

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""


def checkpoint_name(step: int) -> str:
    """Return the name of the folder with the checkpoint taken after `step` optimizer steps."""
    return f"step_{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of optimizer steps behind a checkpoint.

    Example:
        >>> checkpoint_step(Path("checkpoints/step_00000200"))
        200
    """
    return int(checkpoint.name.removeprefix("step_"))


class Choice(NamedTuple):
    """Where a run continues from.

    Attributes:
        checkpoint: The newest whole checkpoint; None where the run has none at all.
        damaged: A sentence per newer one that is not whole.
    """

    checkpoint: Path | None
    damaged: list[str]

    def warnings(self) -> str:
        """Return what to tell a user, in lines; empty where nothing is damaged."""
        return "".join(
            f"WARNING: {sentence}\n         the checkpoint before it is taken: {self.checkpoint}\n"
            for sentence in self.damaged
        )


def all_checkpoints(run: Path) -> list[Path]:
    """Return the folders with names of checkpoints, whole or not, the newest first."""
    found = [path for path in (run / CHECKPOINTS).glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=checkpoint_step, reverse=True)


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints that were written to their end, the newest first."""
    return [path for path in all_checkpoints(run) if is_complete(path)]


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    return next(iter(complete_checkpoints(run)), None)


def choose_checkpoint(run: Path) -> Choice:
    """Choose what a run continues from: its newest checkpoint, or the newest whole one where later ones are damaged.

    A checkpoint gets its name when it is whole, so one that is not was damaged since, as by a copy that was cut short.

    Raises:
        UserError: All checkpoints are damaged. To begin at step 0 then would throw the run away.
    """
    damaged: list[str] = []
    for folder in all_checkpoints(run):
        missing = find_missing(folder)
        if not missing:
            return Choice(folder, damaged)
        damaged.append(f"{folder} is damaged: {'; '.join(missing[:_FILES_SHOWN])}")
    if damaged:
        raise UserError(f"{damaged[0]}\n{what_to_do(all_checkpoints(run)[0])}")
    return Choice(None, [])


def what_to_do(damaged: Path) -> str:
    """Return what to do about a damaged checkpoint: it depends on whether the run has another one."""
    run = damaged.parent.parent
    if any(other != damaged for other in complete_checkpoints(run)):
        return "copy it again, or remove this folder to continue from the checkpoint before it"
    return (
        "it is the only checkpoint: copy it again from where it is whole\n"
        f"to give the run up and begin it at step 0: remove {run / CHECKPOINTS}"
    )


_FILES_SHOWN = 3
