"""Estimate what an experiment costs before it starts, from what was measured on this machine. No torch in here."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from divot_lightning.experiments.plan.grid import Grid, TrialStep
from divot_lightning.experiments.plan.rates import Rate, kind_of, recipe_of, size_mib
from divot_lightning.experiments.runner.progress import clock
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.io.output_files import free_bytes
from divot_lightning.training.recipe_files import find_recipe


@dataclass(frozen=True)
class StepEstimate:
    """The steps of one name that are not done, over all trials.

    Attributes:
        name: In the recipe.
        done: How many are done.
        left: How many are left.
        training_steps: Optimizer steps that are left; 0 if it does not train, None if their number is not known.
        seconds: Time of those that are left; None if nothing of the kind was measured.
        mib: Size of their folders; None if nothing of the kind was measured.
    """

    name: str
    done: int
    left: int
    training_steps: int | None
    seconds: float | None
    mib: float | None


def _training_steps(command: Sequence[str]) -> int:
    """Return the optimizer steps that a training command asks for; 0 where its recipe states none."""
    if "--trainer.max_steps" in command:
        return int(command[command.index("--trainer.max_steps") + 1])
    content = yaml.safe_load(find_recipe(recipe_of(command)).read_text(encoding="utf-8"))
    return int((content.get("trainer") or {}).get("max_steps") or 0)


def estimate_steps(
    grid: Grid, folder: Path, rates: Mapping[str, Rate], unknown: Container[str] = ()
) -> list[StepEstimate]:
    """Estimate what is left of an experiment.

    Args:
        grid: The trials.
        folder: Of the experiment.
        rates: What training and other steps cost; see `divot_lightning.experiments.plan.rates`.
        unknown: Steps that train for a number of steps that is not known.
    """
    trained = {each.folder.name for each in _all(grid) if each.step.run}
    costs = {
        each.step.name: rates.get(kind_of(each.step.name, each.step.command, folder, trained)) for each in _all(grid)
    }
    found = []
    for name in grid.names:
        steps = {each.step.name: each for of_trial in grid.steps.values() if (each := of_trial.get(name))}
        records = {each.folder: StepRecord.read(folder, known) for known, each in steps.items()}
        done = {step_folder: record.seconds for step_folder, record in records.items() if record and record.done}
        left = [each for each in steps.values() if each.folder not in done]
        seconds = None if left and name in unknown else _total(_seconds(each, costs, done.values()) for each in left)
        mib = _total(_mib(each, costs, done) for each in left)
        training = sum(_training_steps(each.step.command) for each in left if each.step.run)
        steps_left = None if left and name in unknown else training
        found.append(StepEstimate(name, len(done), len(left), steps_left, seconds, mib))
    return found


def _all(grid: Grid) -> list[TrialStep]:
    return [each for of_trial in grid.steps.values() for each in of_trial.values()]


def _seconds(step: TrialStep, costs: Mapping[str, Rate | None], done: Collection[float]) -> float | None:
    """Return the time of a step.

    By the rate of its recipe if it trains; else the mean of the others of its name, or of its like elsewhere.
    """
    cost = costs[step.step.name]
    if step.step.run and cost is not None:
        return cost.seconds * _training_steps(step.step.command)
    return fmean(done) if done else None if step.step.run or cost is None else cost.seconds


def _mib(step: TrialStep, costs: Mapping[str, Rate | None], done: Collection[Path]) -> float | None:
    """Return the size of a step's folder: that of the others of its name, else of its like elsewhere."""
    cost = costs[step.step.name]
    return fmean(map(size_mib, done)) if done else None if cost is None else cost.mib


def _total(costs: Iterable[float | None]) -> float | None:
    """Add up costs; None if one is not known."""
    listed = list(costs)
    known = [cost for cost in listed if cost is not None]
    return sum(known) if len(known) == len(listed) else None


def describe_estimate(steps: Sequence[StepEstimate], folder: Path, jobs: int) -> str:
    """Return a line for the steps of each name, then the totals and the free disk.

    Args:
        steps: As `estimate_steps` returns them.
        folder: Of the experiment.
        jobs: Steps that run side by side.
    """
    lines = [f"{'step':<28}{'done':>6}{'left':>6}{'training steps':>16}{'time':>12}{'MiB':>10}"]
    for step in steps:
        time, size = (
            ("?" if step.seconds is None else clock(step.seconds)),
            ("?" if step.mib is None else f"{step.mib:.0f}"),
        )
        training = "?" if step.training_steps is None else step.training_steps or ""
        lines.append(f"{step.name:<28}{step.done:>6}{step.left:>6}{training:>16}{time:>12}{size:>10}")
    left = sum(step.left for step in steps)
    unknown = sum(step.left for step in steps if step.seconds is None)
    time = clock(sum(step.seconds or 0.0 for step in steps) / jobs)
    sizes = [step.mib for step in steps if step.left and step.mib is not None]
    size = f"{sum(sizes):.0f} MiB where a size is known" if sizes or not left else "what they need is not known"
    known = f"{left - unknown} of them take about {time} with --jobs {jobs}."
    if 0 < left == unknown:
        known = "their time is not known. --rates FOLDER takes that of an experiment that has run."
    lines.append(f"{left} steps are left; {known}")
    free = f"{free_bytes(folder) / 2**20:.0f} MiB are free"
    lines.append(f"Disk: {size}, {free}. ?: nothing like it was measured yet.")
    return "".join(f"{line}\n" for line in lines)
