"""Estimate what an experiment costs before it starts, from the steps that are done already. No torch in here."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.runner.progress import clock
from divot_lightning.experiments.runner.records import StepRecord


@dataclass(frozen=True)
class StepEstimate:
    """The steps of one name, over all trials.

    Attributes:
        name: In the recipe.
        done: How many are done.
        left: How many are not.
        seconds: Mean time of those that are done; None if none is.
        mib: Mean size of their folders; None if none is done.
    """

    name: str
    done: int
    left: int
    seconds: float | None
    mib: float | None


def estimate_steps(grid: Grid, folder: Path) -> list[StepEstimate]:
    """Count the steps, and measure those that are done.

    Args:
        grid: The trials.
        folder: Of the experiment, or of an earlier one with the same steps.
    """
    found = []
    for name in grid.names:
        own = [steps[name] for steps in grid.steps.values() if name in steps]
        steps = list({each.step.name: each for each in own}.values())
        records = {each.folder: record for each in steps if (record := StepRecord.read(folder, each.step.name))}
        finished = {place: record.seconds for place, record in records.items() if record.done}
        done = len(finished)
        seconds = sum(finished.values()) / done if done else None
        mib = sum(map(_size_mib, finished)) / done if done else None
        found.append(StepEstimate(name, done, len(steps) - done, seconds, mib))
    return found


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def describe_estimate(steps: Sequence[StepEstimate], folder: Path, jobs: int) -> str:
    """Return what is left to do as lines: steps, their time and disk where a step of that name was measured, totals.

    Args:
        steps: As `estimate_steps` returns them.
        folder: Of the experiment.
        jobs: Steps that run side by side.
    """
    lines = [f"{'step':<28}{'left':>6}{'done':>6}{'time each':>14}{'MiB each':>14}"]
    for step in steps:
        time = "not measured" if step.seconds is None else clock(step.seconds)
        size = "not measured" if step.mib is None else f"{step.mib:.1f}"
        lines.append(f"{step.name:<28}{step.left:>6}{step.done:>6}{time:>14}{size:>14}")
    left, unknown = (sum(step.left for step in of) for of in (steps, [each for each in steps if each.seconds is None]))
    time = clock(sum(step.left * (step.seconds or 0.0) for step in steps) / jobs)
    mib = sum(step.left * (step.mib or 0.0) for step in steps)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free / 2**20
    lines.append(f"{left} steps are left: {left - unknown} take about {time} with --jobs {jobs} and {mib:.0f} MiB;")
    lines.append(f"{unknown} are of a kind that was not measured here; free disk: {free:.0f} MiB")
    return "".join(f"{line}\n" for line in lines)
