"""The checkpoint folders of a run: their names, which are complete, and which are kept. Imports no torch."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from divot_lightning.checkpoint.manifest import find_missing, is_complete
from divot_lightning.errors import UserError
from divot_lightning.io.files import write_atomically

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""
SCORES = "scores.json"
"""File beside the checkpoints with the scores that were measured at them."""
MAX_FILES_SHOWN = 3


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
        damaged.append(f"{folder} is damaged: {'; '.join(missing[:MAX_FILES_SHOWN])}")
    if damaged:
        newest = all_checkpoints(run)[0]
        raise damaged_checkpoint(newest, "; ".join(find_missing(newest)[:MAX_FILES_SHOWN]))
    return Choice(None, [])


def damaged_checkpoint(folder: Path, what: str) -> UserError:
    """Return the error of a damaged checkpoint, with advice that depends on whether the run has another one.

    Args:
        folder: The checkpoint.
        what: What is wrong with it.
    """
    run = folder.parent.parent
    if any(other != folder for other in complete_checkpoints(run)):
        advice = "copy it again, or remove this folder to continue from the checkpoint before it"
    else:
        advice = (
            "it is the only checkpoint: copy it again from where it is whole\n"
            f"to give the run up and begin it at step 0: remove {run / CHECKPOINTS}"
        )
    return UserError(f"{folder} is damaged: {what}\n{advice}")


def steps_to_remove(
    steps: Collection[int],
    scores: Mapping[int, float],
    *,
    keep_last: int,
    keep_every: int | None,
    keep_best: int,
    mode: Literal["min", "max"],
) -> list[int]:
    """Choose the checkpoints to remove: those that no rule keeps.

    Args:
        steps: Steps that have a checkpoint.
        scores: The metric measured at some of them.
        keep_last: How many of the newest to keep; at least 1.
        keep_every: Keep those whose step is a multiple of this.
        keep_best: How many of those with the best scores to keep.
        mode: Whether small or large scores are better.

    Example:
        >>> steps_to_remove([2, 4, 6, 8], {2: 0.1, 4: 0.5}, keep_last=1, keep_every=6, keep_best=1, mode="min")
        [4]
    """
    newest = sorted(steps)[-keep_last:]
    sign = 1 if mode == "min" else -1
    measured = sorted((step for step in steps if step in scores), key=lambda step: (sign * scores[step], -step))
    multiples = [step for step in steps if keep_every and step % keep_every == 0]
    kept = {*newest, *measured[:keep_best], *multiples}
    return sorted(set(steps) - kept)


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint; under its own name it is complete or does not exist."""
    removing = folder.with_name(f".{folder.name}.removing")
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def remove_leftovers(checkpoints: Path) -> None:
    """Remove files that a killed process left while it saved or removed."""
    for pattern in (".step_*.unfinished", ".step_*.removing"):
        for folder in checkpoints.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def read_scores(checkpoints: Path) -> dict[int, float]:
    """Read the scores that were measured at checkpoints; empty where there are none."""
    try:
        return {int(step): float(score) for step, score in json.loads((checkpoints / SCORES).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_score(checkpoints: Path, step: int, score: float) -> None:
    """Add the score of a checkpoint, which is measured after the checkpoint is written."""
    scores = {**read_scores(checkpoints), step: score}
    write_atomically(checkpoints / SCORES, json.dumps(scores) + "\n")
