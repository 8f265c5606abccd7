"""How long each cell trains, so that all have the same steps, samples, tokens or operations. No torch in here."""

import json
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from divot_lightning.errors import UserError
from divot_lightning.experiments.ablation.grid import Grid
from divot_lightning.experiments.ablation.recipe import AblationRecipe
from divot_lightning.experiments.runner.records import is_done, read_record
from divot_lightning.experiments.runner.runner import StepRunner
from divot_lightning.experiments.runner.steps import Step
from divot_lightning.training.recipe_files import find_recipe

COST = (sys.executable, "-m", "divot_lightning.experiments.ablation.cost")
COST_FILE = "cost.json"


def steps_for_amount(
    recipe: AblationRecipe, options: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]], cell: str
) -> int:
    """Return how many steps a cell trains.

    Args:
        recipe: With `matched_by` and `amount`.
        options: Options of the training step in this cell, with its recipe under "fit".
        costs: By cell what a training step costs: "tokens" and "flops"; for those two ways of matching only.
        cell: The cell's name.

    Returns:
        The number of steps that comes nearest to the amount, at least 1.
    """
    assert recipe.amount is not None
    per_step = {
        "steps": lambda: 1.0,
        "samples": lambda: float(samples_per_step(options)),
        "tokens": lambda: costs[cell]["tokens"],
        "compute": lambda: costs[cell]["flops"],
    }[recipe.matched_by]()
    if per_step <= 0:
        raise UserError(f"a training step of cell {cell!r} has no {recipe.matched_by}; match by steps or samples.")
    return max(1, round(recipe.amount / per_step))


def samples_per_step(options: Mapping[str, Any]) -> int:
    """Return the samples of an optimizer step: those of a batch, times the batches that a step accumulates.

    Args:
        options: Options of the training step, with its recipe under "fit"; they count before what the recipe says.
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
    recipe: AblationRecipe,
    grid: Grid,
    name: str,
    folder: Path,
    jobs: int,
    *,
    part: str = "",
    without: Container[str] = (),
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Measure what a training step costs in each cell, once everything that it needs is there.

    Args:
        recipe: The ablation.
        grid: Its cells as planned so far.
        name: The pipeline step that is matched.
        folder: Of the ablation.
        jobs: Processes side by side.
        part: The cell that is run alone, whose ablation must have been measured before; "" for all.
        without: Names of cells that are not measured.

    Returns:
        By cell "tokens" (of the language model's sequences) and "flops" (forward, backward and optimizer) of a step,
        empty if they are not needed; and for cells that could not be measured what they said.

    Raises:
        UserError: A cell is run alone and the costs are not there yet.
    """
    if recipe.matched_by in ("steps", "samples"):
        return {}, {}
    probes = {cell.name: _probe(grid, cell.name, name) for cell in grid.cells if cell.name not in without}
    if part and not any(read_record(folder, probe.name) for probe in probes.values()):
        raise UserError(
            f"cell {part!r} is matched by {recipe.matched_by}, and what a training step costs is not measured yet.\n"
            "Before cells run alone, once: the same command with --part shared"
        )
    if not part:
        needed = {name for probe in probes.values() for name in _ancestors(grid, probe)}
        steps = [step for step in grid.all_steps() if step.name in needed]
        unique = {probe.name: probe for probe in probes.values()}
        StepRunner([*steps, *unique.values()], folder, jobs=jobs, part="cost", keep_going=True).run()
    done = {cell: probe for cell, probe in probes.items() if is_done(folder, probe.name)}
    costs = {cell: json.loads(probe.outputs[0].read_text(encoding="utf-8")) for cell, probe in done.items()}
    return costs, {cell: _said(probe, folder) for cell, probe in probes.items() if cell not in done}


def _said(probe: Step, folder: Path) -> str:
    record = read_record(folder, probe.name)
    reason = record.failure.splitlines()[1] if record is not None and record.failure else "not measured"
    return f"what a training step costs: {reason}"


def _probe(grid: Grid, cell: str, name: str) -> Step:
    trained = grid.steps[cell][name]
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
