"""Compute how long each trial trains, for the same steps, samples, tokens or operations in all. No torch in here."""

import json
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.experiment import Experiment
from divot_lightning.experiments.plan.grid import Grid, make_grid
from divot_lightning.experiments.plan.trials import make_trials, trial_options
from divot_lightning.experiments.runner.records import StepRecord, is_done
from divot_lightning.experiments.runner.runner import StepRunner
from divot_lightning.experiments.runner.steps import Step
from divot_lightning.training.recipe_files import find_recipe

COST = (sys.executable, "-m", "divot_lightning.experiments.plan.cost")
COST_FILE = "cost.json"
MEASURED = ("tokens", "compute")
"""Kinds of `matched_by` for which the cost of a step has to be measured."""

MaxSteps: TypeAlias = dict[str, dict[str, int]]
"""Training steps by trial and step."""
Costs: TypeAlias = Mapping[str, Mapping[str, float]]
"""Cost of a training step by trial, in "tokens" and "flops"."""


def planned_grid(recipe: Experiment, folder: Path) -> tuple[Grid, set[str]]:
    """Plan the trials without running anything.

    Returns:
        The trials, and the steps of `matched_steps` that will train for a number of steps that is not known yet,
        because their cost was not measured in all trials.
    """
    max_steps: MaxSteps = {trial.name: {} for trial in make_trials(recipe)}
    unknown = set()
    for name in recipe.matched_steps:
        costs = _read_costs(_probes(make_grid(recipe, folder, max_steps), name), folder)
        if recipe.matched_by in MEASURED and len(costs) < len(max_steps):
            unknown.add(name)
        else:
            _set_steps(max_steps, recipe, name, costs)
    return make_grid(recipe, folder, max_steps), unknown


def matched_grid(
    recipe: Experiment, folder: Path, jobs: int, part: str, refused: Mapping[str, str]
) -> tuple[Grid, dict[str, str]]:
    """Plan the trials. For `tokens` and `compute`, measure the cost of a training step in each trial first.

    Args:
        recipe: The experiment.
        folder: Of the experiment.
        jobs: Processes side by side.
        part: The trial that runs alone; "" for all.
        refused: Reasons of trials that must not run.

    Returns:
        The trials, and the reasons of those that must not train: refused ones, and those whose cost could not be
        measured.
    """
    max_steps: MaxSteps = {trial.name: {} for trial in make_trials(recipe)}
    failures = dict(refused)
    for name in recipe.matched_steps:
        grid = make_grid(recipe, folder, max_steps)
        costs, failed = measured_costs(recipe, grid, name, folder, jobs, part=part, without=failures)
        failures = failed | failures
        _set_steps(max_steps, recipe, name, costs, without=failures)
    return make_grid(recipe, folder, max_steps), failures


def _set_steps(
    max_steps: MaxSteps, recipe: Experiment, name: str, costs: Costs, *, without: Container[str] = ()
) -> None:
    what = next(entry.what for entry in recipe.steps if entry.name == name)
    for trial in (trial for trial in make_trials(recipe) if trial.name not in without):
        options = {"fit": what, **trial_options(recipe, trial)[name]}
        max_steps[trial.name][name] = steps_for_amount(recipe, options, costs, trial.name)


def steps_for_amount(recipe: Experiment, options: Mapping[str, Any], costs: Costs, trial: str) -> int:
    """Return the number of training steps of a trial.

    Args:
        recipe: With `matched_by` and `amount`.
        options: Options of the training step in this trial, with its recipe under "fit".
        costs: The cost of a training step by trial, "tokens" and "flops"; needed only if these are matched.
        trial: The trial's name.

    Returns:
        The number of steps nearest to the amount, at least 1.

    Raises:
        UserError: A training step of the trial has nothing of what is matched.
    """
    assert recipe.amount is not None
    per_step = {
        "steps": lambda: 1.0,
        "samples": lambda: float(samples_per_step(options)),
        "tokens": lambda: costs[trial]["tokens"],
        "compute": lambda: costs[trial]["flops"],
    }[recipe.matched_by]()
    if per_step <= 0:
        raise UserError(f"a training step of trial {trial!r} has no {recipe.matched_by}; match by steps or samples.")
    return max(1, round(recipe.amount / per_step))


def samples_per_step(options: Mapping[str, Any]) -> int:
    """Return the samples of an optimizer step: those of a batch, times the batches that a step accumulates.

    Args:
        options: Options of the training step, with its recipe under "fit"; options win over the recipe.

    Raises:
        UserError: The recipe states no batch size.
    """
    content = yaml.safe_load(find_recipe(options["fit"]).read_text(encoding="utf-8"))
    stated = {
        "data.batch_size": ((content.get("data") or {}).get("init_args") or {}).get("batch_size"),
        "trainer.accumulate_grad_batches": (content.get("trainer") or {}).get("accumulate_grad_batches"),
    }
    found = {name: options.get(name, value) for name, value in stated.items()}
    if found["data.batch_size"] is None:
        raise UserError(f"the recipe {options['fit']} states no data.batch_size, by which samples are matched.")
    return int(found["data.batch_size"]) * int(found["trainer.accumulate_grad_batches"] or 1)


def measured_costs(
    recipe: Experiment,
    grid: Grid,
    name: str,
    folder: Path,
    jobs: int,
    *,
    part: str = "",
    without: Container[str] = (),
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Measure the cost of a training step in each trial, after the steps that it needs.

    Args:
        recipe: The experiment.
        grid: The trials as planned so far.
        name: The pipeline step that is matched.
        folder: Of the experiment.
        jobs: Processes side by side.
        part: The trial that runs alone; the costs must have been measured before. "" for all trials.
        without: Names of trials that are not measured.

    Returns:
        The costs of a step by trial, "tokens" (of the language model's sequences) and "flops" (forward, backward and
        optimizer), empty if they are not needed; and the reasons of trials that could not be measured.

    Raises:
        UserError: A trial runs alone, and the costs are not measured yet.
    """
    if recipe.matched_by not in MEASURED:
        return {}, {}
    probes = _probes(grid, name, without)
    if part and not any(StepRecord.read(folder, probe.name) for probe in probes.values()):
        raise UserError(
            f"trial {part!r} is matched by {recipe.matched_by}, and the cost of a training step is not measured yet.\n"
            "Before trials run alone, run once the same command with --part shared"
        )
    if not part:
        needed = {name for probe in probes.values() for name in _ancestors(grid, probe)}
        steps = [step for step in grid.all_steps() if step.name in needed]
        unique = {probe.name: probe for probe in probes.values()}
        StepRunner([*steps, *unique.values()], folder, jobs=jobs, part="cost").run()
    costs = _read_costs(probes, folder)
    return costs, {trial: _failure_reason(probe, folder) for trial, probe in probes.items() if trial not in costs}


def _probes(grid: Grid, name: str, without: Container[str] = ()) -> dict[str, Step]:
    return {trial.name: _probe(grid, trial.name, name) for trial in grid.trials if trial.name not in without}


def _read_costs(probes: Mapping[str, Step], folder: Path) -> dict[str, dict[str, float]]:
    done = {trial: probe for trial, probe in probes.items() if is_done(folder, probe.name)}
    return {trial: json.loads(probe.outputs[0].read_text(encoding="utf-8")) for trial, probe in done.items()}


def _failure_reason(probe: Step, folder: Path) -> str:
    record = StepRecord.read(folder, probe.name)
    return f"the cost of a training step: {(record and record.reason) or 'not measured'}"


def _probe(grid: Grid, trial: str, name: str) -> Step:
    trained = grid.steps[trial][name]
    output = trained.folder.with_name(f"{trained.folder.name}.{COST_FILE}")
    words = trained.step.command[trained.step.command.index("fit") + 1 :]
    return Step(f"{trained.step.name}.cost", (*COST, str(output), *words), trained.step.after, outputs=(output,))


def _ancestors(grid: Grid, probe: Step) -> set[str]:
    known = {step.name: step for step in grid.all_steps()}
    found: set[str] = set()
    waiting = list(probe.after)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += known[name].after
    return found
