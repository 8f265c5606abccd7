"""`divot ablate`: run the steps of an experiment recipe, and compare its variants."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.io.command_parser import CommandParser

if TYPE_CHECKING:
    from divot_lightning.experiments.plan.experiment import Experiment

DESCRIPTION = (
    "Run an experiment: the steps of a recipe, for each of its variants and seeds. A trial is one combination of "
    "variants with one seed; its training steps are ordinary runs. Steps that trials share are done once. A stopped "
    "experiment continues, and a failed trial does not stop the others. Writes results.csv, table.md, table.tex and "
    "report.html."
)


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    options = CommandParser(prog="divot ablate", description=DESCRIPTION)
    options.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe, such as ablations/heads")
    options.add_argument("--folder", help="where everything is written (default: runs/ablations/NAME_OF_THE_RECIPE)")
    options.add_argument(
        "--jobs",
        type=int,
        help="processes that run side by side, with one thread each; GPUs are divided among them "
        "(default: 2; 1 if there are GPUs, since a recipe may use all of them)",
    )
    options.add_argument(
        "--part",
        default="",
        metavar="TRIAL",
        help="run one trial only, or `shared` for the steps that several trials need; after `shared`, trials can run "
        "at the same time",
    )
    options.add_argument(
        "--reuse",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="an experiment whose finished shared steps (data, tokenizer, features) are linked, not run again, where "
        "their settings are the same; may be given several times",
    )
    options.add_argument(
        "--mixed-protocols",
        action="store_true",
        help="show scores of different protocols in one table; they are marked with *",
    )
    instead = options.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check the recipe and all settings, print what is left and what it costs, as far as it was measured, and "
        "stop",
    )
    options.add_argument(
        "--rates",
        metavar="FOLDER",
        help="an experiment whose training rates, times of other steps and sizes --dry-run uses",
    )
    instead.add_argument("--list", action="store_true", help="print the names of the trials, one per line, and stop")
    instead.add_argument("--slurm", action="store_true", help="write FOLDER/array.sh, a SLURM array job, and stop")
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot ablate`, and return the exit status: 1 if a trial failed."""
    from divot_lightning.experiments.plan.grid import make_grid
    from divot_lightning.experiments.plan.recipe import load_recipe
    from divot_lightning.experiments.run import lock_recipe, slurm_script
    from divot_lightning.experiments.runner.processes import visible_gpus

    args = parser().parse_args(argv)
    _refuse_idle(args)
    jobs = args.jobs if args.jobs is not None else 1 if visible_gpus() else 2
    recipe = load_recipe(args.recipe)
    folder = Path(args.folder or f"runs/ablations/{Path(args.recipe).stem}")
    trials = [trial.name for trial in make_grid(recipe, folder).trials]
    if args.list:
        sys.stdout.write("".join(f"{name}\n" for name in trials))
        return 0
    if args.slurm:
        lock_recipe(recipe, folder)
        script = slurm_script(args.recipe, folder, len(trials))
        (folder / "array.sh").write_text(script, encoding="utf-8")
        sys.stdout.write(f"{folder / 'array.sh'}: read its first lines\n")
        return 0
    if args.dry_run:
        return dry_run(recipe, folder, jobs, args.rates)
    return run(recipe, folder, jobs, part=args.part, mixed_protocols=args.mixed_protocols, reuse=args.reuse)


def _refuse_idle(args: argparse.Namespace) -> None:
    """Refuse options without effect on what is asked for."""
    if args.rates and not args.dry_run:
        raise UserError("--rates has no effect without --dry-run; leave it out")
    instead = next((name for name in ("dry_run", "list", "slurm") if getattr(args, name)), "")
    idle = ["part", "mixed_protocols", "reuse", *([] if args.dry_run else ["jobs"])]
    given = [name for name in idle if instead and getattr(args, name)]
    if given:
        option, other = given[0].replace("_", "-"), instead.replace("_", "-")
        raise UserError(f"--{option} has no effect with --{other}; leave one of them out")


def dry_run(recipe: "Experiment", folder: Path, jobs: int, rates: str | None = None) -> int:
    """Print the trials that cannot run, the steps that are left and what they cost.

    Args:
        recipe: The experiment.
        folder: Its folder.
        jobs: Processes side by side.
        rates: Folder of another experiment, whose rates of training are used.

    Returns:
        The exit status: 1 if a trial cannot run.
    """
    from divot_lightning.experiments.plan.estimate import describe_estimate, estimate_steps
    from divot_lightning.experiments.plan.matching import planned_grid
    from divot_lightning.experiments.plan.rates import measured_rates
    from divot_lightning.experiments.run import check_experiment, refused_trials

    require_at_least(1, "--", jobs=jobs)
    if rates and not (Path(rates) / "steps").is_dir():
        raise UserError(f"--rates {rates} holds no experiment; give the --folder of one")
    check_experiment(recipe, folder)
    known = {**(measured_rates(Path(rates)) if rates else {}), **measured_rates(folder)}
    grid, unknown = planned_grid(recipe, folder)
    refused = refused_trials(grid, folder)
    sys.stdout.write(describe_estimate(estimate_steps(grid, folder, known, unknown), folder, jobs))
    return 1 if refused else 0


def run(
    recipe: "Experiment",
    folder: Path,
    jobs: int,
    *,
    part: str = "",
    mixed_protocols: bool = False,
    reuse: Sequence[Path] = (),
) -> int:
    """Run an experiment, and print its tables.

    Args:
        recipe: The experiment.
        folder: Holds everything.
        jobs: Processes side by side.
        part: A trial, `shared`, or "" for all.
        mixed_protocols: Whether scores of different protocols may be in one table.
        reuse: Folders of experiments whose shared steps are linked where they are the same.

    Returns:
        The exit status: 1 if a trial failed, among all or the one that `part` names.
    """
    from divot_lightning.experiments.run import REPORT, SHARED, TABLE, run_experiment
    from divot_lightning.experiments.runner.processes import stop_on_terminate

    require_at_least(1, "--", jobs=jobs)
    stop_on_terminate()
    results = run_experiment(recipe, folder, jobs=jobs, part=part, mixed_protocols=mixed_protocols, reuse=reuse)
    # A trial that runs alone fails only for itself, so that a job array shows which of its tasks failed.
    failed = [result for result in results if result.failure and part in (SHARED, "", result.trial.name)]
    for result in failed:
        sys.stderr.write(f"failed: {result.trial.name}: {result.failure}\n")
    if (folder / TABLE).is_file():
        sys.stdout.write(f"{(folder / TABLE).read_text(encoding='utf-8')}\n{folder / REPORT}: open it in a browser\n")
    return 1 if failed else 0
