"""`divot ablate`: the same pipeline with one thing changed at a time."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.errors import UserError

DESCRIPTION = (
    "Run an ablation: every cell is an ordinary run, what cells have in common is done once, a stopped ablation goes "
    "on with what is missing, a failed cell stops no other. Writes results.csv, table.md and report.html."
)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(prog="divot ablate", description=DESCRIPTION)
    options.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe, such as ablations/heads")
    options.add_argument("--folder", help="for everything (default: runs/ablations/<name of the recipe>)")
    options.add_argument(
        "--jobs",
        type=int,
        help="processes side by side, one thread each, among which GPUs are dealt out "
        "(default: 2, or 1 where there are GPUs, since a recipe may want all of them)",
    )
    options.add_argument(
        "--part",
        default="",
        metavar="CELL",
        help="one cell only, or `shared` for what several cells need; cells can run at one time, after `shared`",
    )
    options.add_argument(
        "--mixed-protocols",
        action="store_true",
        help="put scores that were not measured in one way into one table nevertheless; they are marked with *",
    )
    options.add_argument("--list", action="store_true", help="write the names of the cells, a line each, and stop")
    options.add_argument("--slurm", action="store_true", help="write FOLDER/array.sh, a SLURM array job, and stop")
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The words after `divot ablate`.

    Returns:
        The exit status: 1 if a cell failed, of all or the one that was asked for.
    """
    from divot_lightning.experiments.ablation.grid import make_grid
    from divot_lightning.experiments.ablation.recipe import load_recipe
    from divot_lightning.experiments.ablation.run import REPORT, SHARED, TABLE, claim, run_ablation, slurm_script
    from divot_lightning.experiments.runner.processes import visible_gpus

    args = parser().parse_args(argv)
    jobs = args.jobs if args.jobs is not None else 1 if visible_gpus() else 2
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1.")
    recipe = load_recipe(args.recipe)
    folder = Path(args.folder or f"runs/ablations/{Path(args.recipe).stem}")
    cells = [cell.name for cell in make_grid(recipe, folder).cells]
    if args.list:
        sys.stdout.write("".join(f"{name}\n" for name in cells))
        return 0
    if args.slurm:
        claim(recipe, folder)
        script = slurm_script(args.recipe, folder, len(cells))
        (folder / "array.sh").write_text(script, encoding="utf-8")
        sys.stdout.write(f"{folder / 'array.sh'}: read its first lines\n")
        return 0
    from divot_lightning.experiments.runner.stopping import stop_on_terminate

    stop_on_terminate()
    results = run_ablation(recipe, folder, jobs=jobs, part=args.part, mixed_protocols=args.mixed_protocols)
    # A cell that runs alone answers for itself: a job array shows which of its tasks failed.
    failed = [result for result in results if result.failure and args.part in (SHARED, "", result.cell.name)]
    for result in failed:
        sys.stderr.write(f"failed: {result.cell.name}: {result.failure}\n")
    if (folder / TABLE).is_file():
        sys.stdout.write(f"{(folder / TABLE).read_text(encoding='utf-8')}\n{folder / REPORT}: open it in a browser\n")
    return 1 if failed else 0
