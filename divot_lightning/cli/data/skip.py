"""`divot data skip`: skip training steps of a stopped run, for example after a spike of the loss."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.io.command_parser import CommandParser


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data skip",
        description="Skip the samples of some future steps of a stopped run: the samples of later steps move forward. "
        "The edit is written with date and reason to RUN/data/edits.jsonl, and `divot resume` shows it. Steps before "
        "the newest checkpoint are done and cannot be skipped.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--steps", required=True, metavar="A:B", help="steps A to B-1, counted from 0 as in metrics.csv"
    )
    parser.add_argument("--reason", default="", help="reason, stored with the edit")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data skip`, and return the exit status."""
    args = parser().parse_args(argv)
    from divot_datamodules.order.plan_edits import DATA_FOLDER, SkippedSteps, add_edit, plan_step, read_edits
    from divot_lightning.parts.registries.recipe_parts import read_recipe
    from divot_lightning.training.run_folder import CONFIG, require_run
    from divot_lightning.training.run_lock import run_lock

    begin, end = parse_steps(args.steps)
    require_run(args.run)
    with run_lock(args.run):
        batches = _batches_of_a_step(read_recipe(args.run / CONFIG))
        _refuse_passed(args.run, begin)
        edits = read_edits(args.run / DATA_FOLDER)
        first, last = (plan_step(step, edits, batches) for step in (begin, end))
        date = datetime.now(UTC).isoformat(timespec="seconds")
        add_edit(args.run / DATA_FOLDER, SkippedSteps(first, last, args.steps, args.reason, date))
    count = end - begin
    sys.stdout.write(f"{args.run}: the samples of {count} step{'s' * (count > 1)} from step {begin} on are left out\n")
    return 0


def parse_steps(text: str) -> tuple[int, int]:
    """Read "A:B".

    >>> parse_steps("120:140")
    (120, 140)
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"--steps is {text!r}; give A:B with A < B, such as 120:140 for the steps 120 to 139.")
    return int(found[1]), int(found[2])


def _batches_of_a_step(config: dict[str, Any]) -> int:
    data = config.get("data") or {}
    if not str(data.get("class_path", "")).endswith(".VideoTextData"):
        raise UserError(
            f"the run's data are a {data.get('class_path')}, whose order cannot be edited.\n"
            "Only that of divot_datamodules.video_text.VideoTextData can."
        )
    if (data.get("init_args") or {}).get("epoch") == "exact":
        raise UserError("the run's epochs are exact: each covers the data once, so no step can be left out.")
    return int((config.get("trainer") or {}).get("accumulate_grad_batches") or 1)


def _refuse_passed(run: Path, begin: int) -> None:
    from divot_lightning.checkpoint.folders import checkpoint_step, newest_checkpoint

    newest = newest_checkpoint(run)
    if newest is not None and begin < checkpoint_step(newest):
        raise UserError(
            f"step {begin} is done: the newest checkpoint is {newest}, so the run continues with step "
            f"{checkpoint_step(newest)}.\nLeave out later steps, or remove the checkpoints after step {begin} first "
            "(checkpoint.keep_all keeps older ones)."
        )
