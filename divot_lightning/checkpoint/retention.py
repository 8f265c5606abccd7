"""Choice of the checkpoints that are kept, and removal of the others."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from divot_lightning.io.files import write_atomically

SCORES = "scores.json"


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
