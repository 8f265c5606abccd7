"""The checkpoint folders of a run: their names, and which are complete. Imports no torch."""

from pathlib import Path
from typing import NamedTuple

from divot_lightning.checkpoint.manifest import find_missing, is_complete
from divot_lightning.errors import UserError

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""


def checkpoint_name(step: int) -> str:
    """Return the name of the folder with the checkpoint taken after `step` optimizer steps."""
    return f"step_{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of optimizer steps before a checkpoint.

    Example:
        >>> checkpoint_step(Path("checkpoints/step_00000200"))
        200
    """
    return int(checkpoint.name.removeprefix("step_"))


class Choice(NamedTuple):
    """The checkpoint that a run is resumed from.

    Attributes:
        checkpoint: The newest complete checkpoint; None if the run has none at all.
        damaged: A sentence per newer one that is damaged.
    """

    checkpoint: Path | None
    damaged: list[str]

    def warnings(self) -> str:
        """Return warnings for the user, in lines; empty if nothing is damaged."""
        return "".join(
            f"WARNING: {sentence}\n         the checkpoint before it is taken: {self.checkpoint}\n"
            for sentence in self.damaged
        )


def all_checkpoints(run: Path) -> list[Path]:
    """Return the folders with names of checkpoints, complete or not, the newest first."""
    found = [path for path in (run / CHECKPOINTS).glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return sorted(found, key=checkpoint_step, reverse=True)


def complete_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints that were written to their end, the newest first."""
    return [path for path in all_checkpoints(run) if is_complete(path)]


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    return next(iter(complete_checkpoints(run)), None)


def choose_checkpoint(run: Path) -> Choice:
    """Choose the checkpoint to resume from: the newest, or the newest complete one if later ones are damaged.

    A checkpoint gets its name when it is complete, so an incomplete one was damaged later, as by an interrupted copy.

    Raises:
        UserError: All checkpoints are damaged. Starting at step 0 would discard the run.
    """
    damaged: list[str] = []
    for folder in all_checkpoints(run):
        missing = find_missing(folder)
        if not missing:
            return Choice(folder, damaged)
        damaged.append(f"{folder} is damaged: {'; '.join(missing[:_FILES_SHOWN])}")
    if damaged:
        raise UserError(f"{damaged[0]}\n{damage_advice(all_checkpoints(run)[0])}")
    return Choice(None, [])


def damage_advice(damaged: Path) -> str:
    """Return advice about a damaged checkpoint, which depends on whether the run has another one."""
    run = damaged.parent.parent
    if any(other != damaged for other in complete_checkpoints(run)):
        return "copy it again, or remove this folder to continue from the checkpoint before it"
    return (
        "it is the only checkpoint: copy it again from where it is whole\n"
        f"to give the run up and begin it at step 0: remove {run / CHECKPOINTS}"
    )


_FILES_SHOWN = 3
