"""Training steps that a user skips, stored in the run folder with date and reason.

This module does not import torch, so that `divot data skip` starts fast.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

DATA_FOLDER = "data"
"""Folder in a run folder: indexes of shards that have none beside them, and edits of the order."""

EDITS = "edits.jsonl"


@dataclass(frozen=True)
class SkippedSteps:
    """A range of skipped steps: one line of the file.

    Attributes:
        begin: First step of the plan that is skipped.
        end: The step of the plan after the last skipped one.
        steps: The range as the user wrote it, in steps of the run, such as "120:140".
        reason: The reason that the user gave.
        date: Date of the edit, in ISO 8601.
    """

    begin: int
    end: int
    steps: str
    reason: str
    date: str


def read_edits(folder: Path | None) -> list[SkippedSteps]:
    """Read a run's edits; return [] if there is no file.

    Args:
        folder: The run's `DATA_FOLDER`; None for data without a run.
    """
    path = folder / EDITS if folder is not None else None
    if path is None or not path.is_file():
        return []
    return [SkippedSteps(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def add_edit(folder: Path, edit: SkippedSteps) -> None:
    """Append an edit to a run's list."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / EDITS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(edit)) + "\n")


def steps_from(first: int, edits: list[SkippedSteps]) -> Iterator[int]:
    """Yield the plan's steps from `first` on, without the skipped ones.

    >>> list(islice(steps_from(1, [SkippedSteps(2, 4, "2:4", "", "")]), 3))
    [1, 4, 5]
    """
    return (step for step in count(first) if not any(edit.begin <= step < edit.end for edit in edits))


def plan_step(run_step: int, edits: list[SkippedSteps], plan_steps_each: int = 1) -> int:
    """Return the first step of the plan that a step of the run takes.

    Args:
        run_step: Number of optimizer steps before it.
        edits: The edits of the run.
        plan_steps_each: Steps of the plan that one optimizer step takes, with gradient accumulation more than 1.

    >>> plan_step(3, [SkippedSteps(2, 4, "2:4", "", "")])
    5
    """
    return next(islice(steps_from(0, edits), run_step * plan_steps_each, None))
