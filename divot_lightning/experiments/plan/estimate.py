"""Estimate what an experiment costs before it starts, from what was measured on this machine. No torch in here."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from divot_lightning.experiments.plan.grid import Grid, TrialStep
from divot_lightning.experiments.results.trials import training_seconds
from divot_lightning.experiments.runner.progress import clock
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.io.output_files import free_bytes
from divot_lightning.training.recipe_files import find_recipe
from divot_lightning.training.run_folder import read_finished


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


@dataclass(frozen=True)
class Rate:
    """What training by a recipe has cost.

    Attributes:
        seconds: Of an optimizer step, without the start of the process.
        mib: Size of the run's folder.
    """

    seconds: float
    mib: float


def _recipe_of(command: Sequence[str]) -> str:
    return command[command.index("--config") + 1]


def _training_steps(command: Sequence[str]) -> int:
    """Return the optimizer steps that a training command asks for; 0 where its recipe states none."""
    if "--trainer.max_steps" in command:
        return int(command[command.index("--trainer.max_steps") + 1])
    content = yaml.safe_load(find_recipe(_recipe_of(command)).read_text(encoding="utf-8"))
    return int((content.get("trainer") or {}).get("max_steps") or 0)


def measured_rates(folder: Path) -> dict[str, Rate]:
    """Return what training has cost, by training recipe.

    Args:
        folder: Of an experiment; the steps that are done count.
    """
    records = [StepRecord.read(folder, path.stem) for path in sorted((folder / "steps").glob("*.json"))]
    seconds, steps = defaultdict[str, float](float), defaultdict[str, int](int)
    sizes = defaultdict[str, list[float]](list)
    for record in (record for record in records if record and record.done and "--run" in record.command):
        run, recipe = Path(record.command[record.command.index("--run") + 1]), _recipe_of(record.command)
        finished = read_finished(run)
        steps[recipe] += finished.get("steps", 0)
        seconds[recipe] += training_seconds(finished, record)
        sizes[recipe].append(_size_mib(run))
    trained = [recipe for recipe in steps if steps[recipe]]
    return {recipe: Rate(seconds[recipe] / steps[recipe], fmean(sizes[recipe])) for recipe in trained}


def estimate_steps(
    grid: Grid, folder: Path, rates: Mapping[str, Rate], unknown: Container[str] = ()
) -> list[StepEstimate]:
    """Estimate what is left of an experiment.

    Args:
        grid: The trials.
        folder: Of the experiment.
        rates: What training costs, by recipe.
        unknown: Steps that train for a number of steps that is not known.
    """
    found = []
    for name in grid.names:
        steps = {each.step.name: each for of_trial in grid.steps.values() if (each := of_trial.get(name))}
        records = {each.folder: StepRecord.read(folder, known) for known, each in steps.items()}
        done = {step_folder: record.seconds for step_folder, record in records.items() if record and record.done}
        left = [each for each in steps.values() if each.folder not in done]
        mean = fmean(done.values()) if done else None
        seconds = None if left and name in unknown else _total(_seconds(each, rates, mean) for each in left)
        size = fmean(map(_size_mib, done)) if done else None
        mib = _total(_mib(each, rates, size) for each in left)
        training = sum(_training_steps(each.step.command) for each in left if each.step.run)
        steps_left = None if left and name in unknown else training
        found.append(StepEstimate(name, len(done), len(left), steps_left, seconds, mib))
    return found


def _seconds(step: TrialStep, rates: Mapping[str, Rate], mean: float | None) -> float | None:
    """Return the time of a step: by the rate of its recipe if it trains, else that of the others of its name."""
    if step.step.run and (rate := rates.get(_recipe_of(step.step.command))) is not None:
        return rate.seconds * _training_steps(step.step.command)
    return mean


def _mib(step: TrialStep, rates: Mapping[str, Rate], mean: float | None) -> float | None:
    """Return the size of a step's folder: that of the others of its name, else of other runs of its recipe."""
    rate = rates.get(_recipe_of(step.step.command)) if step.step.run else None
    return rate.mib if mean is None and rate is not None else mean


def _total(costs: Iterable[float | None]) -> float | None:
    """Add up costs; None if one is not known."""
    listed = list(costs)
    known = [cost for cost in listed if cost is not None]
    return sum(known) if len(known) == len(listed) else None


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


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
    mib = sum(step.mib or 0.0 for step in steps)
    known = f"{left - unknown} of them take about {time} with --jobs {jobs}."
    if 0 < left == unknown:
        known = "their time is not known. --rates FOLDER takes that of an experiment that has run."
    lines.append(f"{left} steps are left; {known}")
    free = f"{free_bytes(folder) / 2**20:.0f} MiB are free"
    lines.append(f"Disk: {mib:.0f} MiB where a size is known, {free}. ?: nothing like it was measured yet.")
    return "".join(f"{line}\n" for line in lines)
