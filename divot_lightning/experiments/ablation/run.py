"""Runs an ablation, all of it or a part, and writes what it came to. No torch in here."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from divot_lightning.errors import UserError
from divot_lightning.experiments.ablation.grid import Cell, Grid, cell_options, make_cells, make_grid
from divot_lightning.experiments.ablation.matching import measured_costs, steps_for_amount
from divot_lightning.experiments.ablation.recipe import AblationRecipe, restore_recipe
from divot_lightning.experiments.ablation.report import all_tables, build_report, table_page, write_text
from divot_lightning.experiments.ablation.results import CellResult, collect
from divot_lightning.experiments.ablation.settings_check import wrong_settings
from divot_lightning.experiments.ablation.tables import as_csv, as_markdown, baseline_of
from divot_lightning.experiments.report.rendering import write_report
from divot_lightning.experiments.runner.records import is_done
from divot_lightning.experiments.runner.runner import StepRunner
from divot_lightning.experiments.runner.steps import Step

REPORT, TABLE, ROWS = "report.html", "table.md", "results.csv"
STOPPED = 130
"""Exit status of a command that was told to stop, as shells have it for Ctrl-C."""
SHARED = "shared"
"""The part of an ablation that several cells need; it has to be done before cells can run by themselves."""


def run_ablation(
    recipe: AblationRecipe, folder: Path, *, jobs: int, part: str = "", mixed_protocols: bool = False
) -> list[CellResult]:
    """Run what is not done yet, then writes table and report.

    Args:
        recipe: The ablation.
        folder: Holds everything.
        jobs: Processes side by side.
        part: "" for all; "shared" for what several cells need; or the name of one cell.
        mixed_protocols: Whether cells that were measured in different ways may stand in one table, which marks them.

    Returns:
        What the cells came to so far.

    Raises:
        UserError: The folder holds another ablation, the part is unknown or comes too early, or cells were measured in
            different ways.
    """
    baseline_of(recipe, [CellResult(cell) for cell in make_cells(recipe)])
    claim(recipe, folder)
    _check_part(recipe, part)
    refused = _refused_cells(make_grid(recipe, folder), folder, part)
    grid, failures = _matched_grid(recipe, folder, jobs, "" if part == SHARED else part, refused)
    steps = [step for step in _part(grid, part, folder) if step.name in _names_of(grid, failures)]
    StepRunner(steps, folder, jobs=jobs, keep_going=True, part=part).run()
    results = collect(grid, folder, mixed_protocols=mixed_protocols)
    results = [replace(r, failure=r.failure or failures.get(r.cell.name, "")) for r in results]
    write_results(recipe, grid, results, folder)
    return results


def _refused_cells(grid: Grid, folder: Path, part: str) -> dict[str, str]:
    """Find cells with wrong settings before what they share is trained for hours; says which and why."""
    cells = [part] if part in grid.steps else list(grid.steps)
    planned = {s.step.name: s.step for cell in cells for s in grid.steps[cell].values()}
    wrong = wrong_settings([step for step in planned.values() if not is_done(folder, step.name)])
    refused: dict[str, str] = {}
    for cell in cells:
        for name, step in grid.steps[cell].items():
            if step.step.name in wrong:
                refused.setdefault(cell, f"{name}: {wrong[step.step.name]}")
    for said in dict.fromkeys(refused.values()):
        sys.stderr.write(f"{', '.join(cell for cell in refused if refused[cell] == said)} cannot run: {said}\n")
    return refused


def _matched_grid(
    recipe: AblationRecipe, folder: Path, jobs: int, part: str, refused: Mapping[str, str]
) -> tuple[Grid, dict[str, str]]:
    """Plan the cells; for `tokens` and `compute` the cost of a training step is measured in each cell before.

    Returns:
        The cells, and for those that must not train, refused ones or ones whose cost could not be measured, why.
    """
    max_steps: dict[str, dict[str, int]] = {cell.name: {} for cell in make_cells(recipe)}
    failures = dict(refused)
    for name in recipe.matched_steps:
        grid = make_grid(recipe, folder, max_steps)
        costs, failed = measured_costs(recipe, grid, name, folder, jobs, part=part, without=failures)
        failures = failed | failures
        for cell in (cell for cell in make_cells(recipe) if cell.name not in failures):
            max_steps[cell.name][name] = steps_for_amount(recipe, _batch_options(recipe, cell, name), costs, cell.name)
    return make_grid(recipe, folder, max_steps), failures


def _names_of(grid: Grid, failures: Mapping[str, str]) -> set[str]:
    """Return the names of the steps of all cells that can be run."""
    return {s.step.name for cell, steps in grid.steps.items() if cell not in failures for s in steps.values()}


def _batch_options(recipe: AblationRecipe, cell: Cell, step: str) -> Mapping[str, Any]:
    what = next(entry.what for entry in recipe.pipeline if entry.name == step)
    return {"fit": what, **cell_options(recipe, cell)[step]}


def _check_part(recipe: AblationRecipe, part: str) -> None:
    cells = [cell.name for cell in make_cells(recipe)]
    if part not in ("", SHARED, *cells):
        raise UserError(f"there is no cell {part!r}; the cells are {', '.join(cells)}.")


def _part(grid: Grid, part: str, folder: Path) -> list[Step]:
    if not part:
        return grid.all_steps()
    if part == SHARED:
        return grid.shared_steps()
    steps = grid.steps[part].values()
    # Two cells that ran a shared step at one time would clear each other's results.
    for step in (step.step for step in steps if step.shared):
        if not is_done(folder, step.name):
            raise UserError(
                f"cell {part!r} needs {step.name!r}, which other cells need as well and which is not done.\n"
                "Before cells run alone, once: the same command with --part shared"
            )
    return [step.step for step in steps]


def claim(recipe: AblationRecipe, folder: Path) -> None:
    """Write the recipe into the folder, or refuses one that holds another ablation.

    The ablation may have grown: more seeds or variants, another text, other scores. What it had must stay as it was.

    Raises:
        UserError: The folder holds another ablation, or something else.
    """
    path = folder / "recipe.yaml"
    if path.is_file():
        changed = _changed_step(restore_recipe(yaml.safe_load(path.read_text(encoding="utf-8"))), recipe, folder)
        if changed:
            raise UserError(
                f"{folder} holds an ablation of another recipe ({path}): what differs is {changed}.\n"
                "Seeds and variants may be added to it; for anything else give another --folder."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--folder {folder} is there and holds no ablation; give one that does not exist yet.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(_plain(recipe.__dict__), sort_keys=False))


def _changed_step(before: AblationRecipe, now: AblationRecipe, folder: Path) -> str:
    """Return what a recipe no longer has or does in another way, "" for nothing."""
    for name in ("matched_by", "amount", "matched_steps"):
        if getattr(before, name) != getattr(now, name):
            return name
    commands = {step.name: step.command for step in make_grid(now, folder).all_steps()}
    old = make_grid(before, folder).all_steps()
    return next((f"step {step.name}" for step in old if commands.get(step.name) != step.command), "")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _plain(value.__dict__) if hasattr(value, "__dict__") else value


def write_results(recipe: AblationRecipe, grid: Grid, results: list[CellResult], folder: Path) -> None:
    """Write `results.csv`, `table.md` and `report.html`."""
    conditions = [("Date", datetime.now(UTC).date().isoformat()), ("Code", code_version())]
    write_text(folder / ROWS, as_csv(results))
    if any(result.scores for result in results):
        tables = as_markdown(all_tables(recipe, results))
        write_text(folder / TABLE, f"{table_page(recipe, conditions)}\n{tables}")
        write_report(build_report(recipe, grid, results, conditions), folder / REPORT)


def code_version() -> str:
    """Return the version, with the commit where the code lies in a git checkout."""
    here = Path(__file__).parent
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        said = None
    commit = f", commit {said.stdout.strip()}" if said is not None and said.returncode == 0 else ""
    return f"divot-lightning {version('divot-lightning')}{commit}"


def slurm_script(recipe_name: str, folder: Path, cells: int) -> str:
    """Return a job script that runs the cells as an array, one per job, after the shared steps are done.

    Args:
        recipe_name: As given on the command line.
        folder: Of the ablation.
        cells: Their number.
    """
    place = shlex.quote(str(folder))
    command = f"divot ablate {shlex.quote(recipe_name)} --folder {place}"
    return f"""#!/bin/bash
# First, once:   {command} --part shared
# Then:          sbatch {place}/array.sh
# At the end:    {command}          (nothing is left to run; writes table and report)
#SBATCH --job-name=ablation
#SBATCH --array=0-{cells - 1}
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output={folder}/slurm-%A_%a.out
# partition, time, GPUs and memory of one cell: add yours here
cell=$({command} --list | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
srun {command} --part "$cell"
status=$?
# Five minutes before the time is over the cell is told to save and leave; it continues in a job of the same number.
if [ "$status" -eq {STOPPED} ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
"""
