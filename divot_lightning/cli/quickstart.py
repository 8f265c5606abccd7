"""`divot quickstart`: train every stage on toy data, compare the heads, write a report."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.io.files import write_atomically

SETTINGS_FILE = "quickstart.json"


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot quickstart",
        description="Make toy data, train every stage with the recipes in toy/, compare the generation heads and write "
        "FOLDER/report.html. After a stop, the same command continues.",
    )
    parser.add_argument(
        "--folder", help="where everything is written (default: runs/quickstart; with --fast runs/quickstart_fast)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="train a few steps per stage, to check that everything runs"
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        metavar="HEAD",
        help="generation heads to compare, by short name; gmm must be one of them (default: mse diffusion gmm)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        help="processes that run side by side, with one thread each; GPUs are divided among them (default: 2)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The words after `divot quickstart`.

    Returns:
        The exit status.
    """
    args = parser().parse_args(argv)
    folder = Path(args.folder or ("runs/quickstart_fast" if args.fast else "runs/quickstart"))
    return run_quickstart(folder, fast=args.fast, jobs=args.jobs, heads=args.heads)


def run_quickstart(folder: Path, *, fast: bool, jobs: int, heads: Sequence[str] | None = None) -> int:
    """Run all steps that are not done, then write the report."""
    from dataclasses import replace

    from divot_lightning.experiments.quickstart.collect import build_report
    from divot_lightning.experiments.quickstart.plan import FAST, FULL, MAIN_HEAD, Layout, make_plan
    from divot_lightning.experiments.report.rendering import write_report
    from divot_lightning.experiments.runner.runner import StepRunner
    from divot_lightning.experiments.runner.stopping import stop_on_terminate

    settings = FAST if fast else FULL
    if heads is not None:
        _check_heads(heads, MAIN_HEAD)
        settings = replace(settings, heads=tuple(dict.fromkeys(heads)))
    runner = StepRunner(make_plan(folder, settings), folder, jobs=jobs)
    _lock_settings(folder, settings.as_json())
    stop_on_terminate()
    records = runner.run()
    layout = Layout(folder)
    write_report(build_report(folder, settings, records, runner.total_seconds), layout.report)
    sys.stdout.write(f"{layout.report}: open it in a browser\n")
    return 0


def _check_heads(heads: Sequence[str], main_head: str) -> None:
    """Check the chosen heads.

    Raises:
        UserError: A head is not installed, or the head that the later stages train with is missing.
    """
    from divot_lightning.parts.kinds import HEADS

    short_names = {head.name for head in HEADS.installed()}
    for name in heads:
        HEADS.resolve(name)
        if name not in short_names:
            raise UserError(f"--heads {name}: give the short name; installed: {', '.join(sorted(short_names))}")
    if main_head not in heads:
        raise UserError(f"--heads {' '.join(heads)} lacks {main_head}, which the later stages train with; add it")


def _lock_settings(folder: Path, settings: dict[str, object]) -> None:
    """Write the settings into the folder, which then takes no quickstart of other settings.

    Raises:
        UserError: The folder holds a quickstart of other settings, or other files.
    """
    path = folder / SETTINGS_FILE
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in settings.items() if there.get(name) != value]
        if differing:
            values = ", ".join(f"{name} {there.get(name)} instead of {settings[name]}" for name in differing)
            raise UserError(f"{folder} holds a quickstart of other settings: {values}\nGive another --folder.")
        return
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--folder {folder} exists and holds no quickstart; give one that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(settings, indent=1) + "\n")
