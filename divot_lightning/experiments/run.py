"""Run an experiment, all of it or a part, and write its results. No torch in here."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.experiment import Experiment
from divot_lightning.experiments.plan.grid import Grid, make_grid
from divot_lightning.experiments.plan.matching import matched_grid
from divot_lightning.experiments.plan.recipe import parse_recipe
from divot_lightning.experiments.plan.settings_check import wrong_settings
from divot_lightning.experiments.plan.trials import make_trials
from divot_lightning.experiments.report.page import all_tables, build_report, table_page
from divot_lightning.experiments.report.rendering import write_report
from divot_lightning.experiments.results.formats import as_csv, as_latex, as_markdown
from divot_lightning.experiments.results.tables import baseline_of
from divot_lightning.experiments.results.trials import TrialResult, collect
from divot_lightning.experiments.runner.records import StepRecord, is_done
from divot_lightning.experiments.runner.reuse import link_done_steps, require_experiments
from divot_lightning.experiments.runner.runner import StepRunner
from divot_lightning.experiments.runner.steps import Step
from divot_lightning.io.files import write_atomically
from divot_lightning.io.output_files import make_folder

REPORT, TABLE, LATEX, ROWS = "report.html", "table.md", "table.tex", "results.csv"
STOPPED = 130
"""Exit status of a command that was stopped, as shells report it for Ctrl-C."""
SHARED = "shared"
"""The part of an experiment that several trials need; it must be done before a trial can run alone."""


def run_experiment(
    recipe: Experiment,
    folder: Path,
    *,
    jobs: int,
    part: str = "",
    mixed_protocols: bool = False,
    reuse: Sequence[Path] = (),
) -> list[TrialResult]:
    """Run everything that is not done yet, then write table and report.

    Args:
        recipe: The experiment.
        folder: Holds everything.
        jobs: Processes side by side.
        part: "" for all; "shared" for what several trials need; or the name of one trial.
        mixed_protocols: Whether scores of different protocols may be in one table, where they are marked.
        reuse: Folders of experiments whose shared steps are linked where they are the same.

    Returns:
        The results of the trials so far.

    Raises:
        UserError: The folder holds another experiment, the part is unknown or comes too early, the protocols of a
            score differ, or a folder to reuse holds no experiment.
    """
    check_experiment(recipe, folder)
    require_experiments(reuse)
    lock_recipe(recipe, folder)
    _check_part(recipe, part)
    for name in link_done_steps(make_grid(recipe, folder), folder, reuse):
        sys.stderr.write(f"{name}: taken from another experiment\n")
    refused = refused_trials(make_grid(recipe, folder), folder, part)
    grid, failures = matched_grid(recipe, folder, jobs, "" if part == SHARED else part, refused)
    steps = [step for step in _part(grid, part, folder) if step.name in _names_of(grid, failures)]
    runner = StepRunner(steps, folder, jobs=jobs, part=part)
    runner.run()
    results = collect(grid, folder, mixed_protocols=mixed_protocols)
    results = [replace(r, failure=r.failure or failures.get(r.trial.name, "")) for r in results]
    write_results(recipe, grid, results, folder, runner.total_seconds)
    return results


def check_experiment(recipe: Experiment, folder: Path) -> None:
    """Check what can be checked without torch and without writing anything.

    Raises:
        UserError: The baseline is no combination of variants, or the folder holds another experiment or something else.
    """
    baseline_of(recipe, [TrialResult(trial) for trial in make_trials(recipe)])
    _require_own_folder(recipe, folder)


def refused_trials(grid: Grid, folder: Path, part: str = "") -> dict[str, str]:
    """Find trials with wrong settings before their shared steps train for hours, and print them with the reason.

    Args:
        grid: The plan of the experiment.
        folder: Its folder; the settings of steps that are done are not looked at.
        part: A trial, if only that runs.

    Returns:
        The reasons by name of the trial.
    """
    trials = [part] if part in grid.steps else list(grid.steps)
    planned = {s.step.name: s.step for trial in trials for s in grid.steps[trial].values()}
    wrong = wrong_settings([step for step in planned.values() if not is_done(folder, step.name)])
    refused: dict[str, str] = {}
    for trial in trials:
        for name, step in grid.steps[trial].items():
            if step.step.name in wrong:
                refused.setdefault(trial, f"{name}: {wrong[step.step.name]}")
    for reason in dict.fromkeys(refused.values()):
        names = ", ".join(trial for trial in refused if refused[trial] == reason)
        sys.stderr.write(f"{names} cannot run: {reason}\n")
    return refused


def _names_of(grid: Grid, failures: Mapping[str, str]) -> set[str]:
    """Return the names of the steps of all trials that can be run."""
    return {s.step.name for trial, steps in grid.steps.items() if trial not in failures for s in steps.values()}


def _check_part(recipe: Experiment, part: str) -> None:
    trials = [trial.name for trial in make_trials(recipe)]
    if part not in ("", SHARED, *trials):
        raise UserError(f"there is no trial {part!r}; the trials are {', '.join(trials)}.")


def _part(grid: Grid, part: str, folder: Path) -> list[Step]:
    if not part:
        return grid.all_steps()
    if part == SHARED:
        return grid.shared_steps()
    steps = grid.steps[part].values()
    # Two trials that run a shared step at the same time would clear each other's results.
    for step in (step.step for step in steps if step.shared):
        if not is_done(folder, step.name):
            raise UserError(
                f"trial {part!r} needs {step.name!r}, which other trials need as well and which is not done yet.\n"
                "Before trials run alone, run once the same command with --part shared"
            )
    return [step.step for step in steps]


def lock_recipe(recipe: Experiment, folder: Path) -> None:
    """Write the recipe into the folder, which then takes no other experiment.

    A recipe may be extended later: more seeds or variants, another text, other scores. Its old steps must stay.

    Raises:
        UserError: The folder holds another experiment, or something else.
    """
    _require_own_folder(recipe, folder)
    make_folder(folder)
    write_atomically(folder / "recipe.yaml", yaml.safe_dump(dict(recipe.content), sort_keys=False))


def _require_own_folder(recipe: Experiment, folder: Path) -> None:
    path = folder / "recipe.yaml"
    if path.is_file():
        changed = _changed_step(path, recipe, folder)
        if changed:
            raise UserError(
                f"{folder} holds another experiment ({path}): what differs is {changed}.\n"
                "Seeds, variants and steps may be added to it; for anything else give another --folder."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--folder {folder} exists and holds no experiment; give one that does not exist yet.")


def _changed_step(path: Path, now: Experiment, folder: Path) -> str:
    """Return the first step or key that a new recipe drops or changes, "" if there is none."""
    try:
        before = parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))
    except UserError as error:
        return f"its form: {error}"
    for name in ("matched_by", "amount", "matched_steps"):
        if getattr(before, name) != getattr(now, name):
            return name
    commands = {step.name: step.command for step in make_grid(now, folder).all_steps()}
    old = make_grid(before, folder).all_steps()
    return next((f"step {step.name}" for step in old if commands.get(step.name) != step.command), "")


def write_results(
    recipe: Experiment, grid: Grid, results: list[TrialResult], folder: Path, seconds: float = 0.0
) -> None:
    """Write `results.csv`, `table.md`, `table.tex` and `report.html`."""
    conditions = [("Date", datetime.now(UTC).date().isoformat()), ("Code", code_version())]
    write_atomically(folder / ROWS, as_csv(recipe, results))
    if any(result.scores for result in results):
        tables = all_tables(recipe, grid, results)
        write_atomically(folder / TABLE, f"{table_page(recipe, conditions)}\n{as_markdown(tables)}")
        write_atomically(folder / LATEX, as_latex(tables))
        records = [record for step in grid.all_steps() if (record := StepRecord.read(folder, step.name))]
        write_report(build_report(recipe, grid, results, records, seconds, conditions), folder / REPORT)


def code_version() -> str:
    """Return the version, and the commit if the code lies in a git checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        described = None
    commit = f", commit {described.stdout.strip()}" if described is not None and described.returncode == 0 else ""
    return f"divot-lightning {version('divot-lightning')}{commit}"


def slurm_script(recipe_name: str, folder: Path, trials: int) -> str:
    """Return a job script that runs each trial as one task of an array, after the shared steps are done.

    Args:
        recipe_name: As given on the command line.
        folder: Of the ablation.
        trials: Their number.
    """
    quoted = shlex.quote(str(folder))
    command = f"divot ablate {shlex.quote(recipe_name)} --folder {quoted}"
    return f"""#!/bin/bash
# First, once:   {command} --part shared
# Then:          sbatch {quoted}/array.sh
# At the end:    {command}          (nothing is left to run; writes table and report)
#SBATCH --job-name=ablation
#SBATCH --array=0-{trials - 1}
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output={folder}/slurm-%A_%a.out
# partition, time, GPUs and memory of one trial: add yours here
trial=$({command} --list | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
srun {command} --part "$trial"
status=$?
# Five minutes before the time limit the trial gets SIGTERM: it saves and ends, and continues when the task is requeued.
if [ "$status" -eq {STOPPED} ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
"""
