"""`divot quickstart`: toy data, every stage, the heads compared, one report."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.errors import UserError

SETTINGS_FILE = "quickstart.json"


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot quickstart",
        description="Make toy data, train every stage with the recipes in toy/, compare the generation heads and write "
        "FOLDER/report.html. Stopped and started again, it continues where it stopped.",
    )
    parser.add_argument("--folder", help="for everything (default: runs/quickstart, with --fast runs/quickstart_fast)")
    parser.add_argument("--fast", action="store_true", help="a few steps per stage, to see that all of it works")
    parser.add_argument(
        "--heads",
        nargs="+",
        metavar="HEAD",
        help="generation heads to compare, by short name; gmm is always among them (default: mse diffusion gmm)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        help="processes side by side, one thread each, among which GPUs are dealt out (default: 2)",
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
    """Run all steps that are not done, then writes the report."""
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
    _claim(folder, settings.as_json())
    stop_on_terminate()
    records = runner.run()
    layout = Layout(folder)
    write_report(build_report(folder, settings, records, runner.total_seconds), layout.report)
    sys.stdout.write(f"{layout.report}: open it in a browser\n")
    return 0


def _check_heads(heads: Sequence[str], main_head: str) -> None:
    """Refuse heads that are not installed, and a choice without the one that the later stages train with.

    Raises:
        UserError: Which.
    """
    from divot_lightning.parts.kinds import HEADS

    short_names = {head.name for head in HEADS.installed()}
    for name in heads:
        HEADS.resolve(name)
        if name not in short_names:
            raise UserError(f"--heads {name}: give the short name; installed: {', '.join(sorted(short_names))}")
    if main_head not in heads:
        raise UserError(f"--heads {' '.join(heads)} lacks {main_head}, which the later stages train with; add it")


def _claim(folder: Path, settings: dict[str, object]) -> None:
    """Write the settings into the folder, or refuses it if it holds something else.

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
        raise UserError(f"--folder {folder} is there and holds no quickstart; give one that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
