"""The folders of a run's checkpoints: their names, and which of them are whole. Imports no torch."""

from pathlib import Path

from divot_lightning.sharding.manifest import is_complete

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them."""


def checkpoint_name(step: int) -> str:
    """Give the name of the folder with the checkpoint taken after `step` optimizer steps."""
    return f"step_{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Give the number of optimizer steps behind a checkpoint.

    Example:
        >>> checkpoint_step(Path("checkpoints/step_00000200"))
        200
    """
    return int(checkpoint.name.removeprefix("step_"))


def complete_checkpoints(run: Path) -> list[Path]:
    """Give the checkpoints that were written to their end, the newest first."""
    found = [path for path in (run / CHECKPOINTS).glob("step_*") if path.name.removeprefix("step_").isdecimal()]
    return [path for path in sorted(found, key=checkpoint_step, reverse=True) if is_complete(path)]


def newest_checkpoint(run: Path) -> Path | None:
    """Give the newest checkpoint that was written to its end, or None."""
    return next(iter(complete_checkpoints(run)), None)
