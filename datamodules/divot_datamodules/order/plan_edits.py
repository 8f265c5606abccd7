"""Steps that a user takes out of the training order, written down with date and reason.

No torch here: `divot data skip` starts fast.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

EDITS = "edits.jsonl"


@dataclass(frozen=True)
class SkippedSteps:
    """One edit.

    Attributes:
        begin: First step of the plan that is left out.
        end: The step of the plan after the last one that is left out.
        steps: What the user wrote: numbers of the run's steps, such as "120:140".
        reason: Why.
        date: When, in ISO 8601.
    """

    begin: int
    end: int
    steps: str
    reason: str
    date: str


def read_edits(folder: Path | None) -> list[SkippedSteps]:
    """Read a run's edits; none where there is no file.

    Args:
        folder: The run's `data` folder.
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
    """Yield the plan's steps from the first on, without those that edits leave out.

    >>> list(islice(steps_from(1, [SkippedSteps(2, 4, "2:4", "", "")]), 3))
    [1, 4, 5]
    """
    return (step for step in count(first) if not any(edit.begin <= step < edit.end for edit in edits))


def plan_step(run_step: int, edits: list[SkippedSteps], plan_steps_each: int = 1) -> int:
    """Return which step of the plan a step of the run begins with.

    Args:
        run_step: Optimizer steps before it.
        edits: Those in force.
        plan_steps_each: Steps of the plan that one optimizer step takes: the accumulated batches.

    >>> plan_step(3, [SkippedSteps(2, 4, "2:4", "", "")])
    5
    """
    return next(islice(steps_from(0, edits), run_step * plan_steps_each, None))
