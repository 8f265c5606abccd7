"""`divot compare`: show scores side by side, with the differences of their models and protocols."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from divot_lightning.errors import UserError, shortened
from divot_lightning.io.command_parser import CommandParser

MAX_SHOWN = 60
"""Longer values of a protocol are cut to this number of characters."""


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot compare",
        description="Show the scores of evaluations side by side, with the differences of their models and protocols. "
        "For two evaluations, also show the difference of each score with its 95% interval over their common items.",
    )
    parser.add_argument("evaluation", nargs="+", help="folder that `divot evaluate` wrote, or file of scores")
    parser.add_argument(
        "--mixed-protocols",
        action="store_true",
        help="show scores of different protocols in one table; they are marked with *",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot compare`, and return the exit status: 1 if no values were shown."""
    args = parser().parse_args(argv)
    if len(args.evaluation) < 2:
        raise UserError(f"one evaluation was given, {args.evaluation[0]}; give two or more to compare")
    from divot_lightning.evaluation.protocol import differing, differing_protocols
    from divot_lightning.evaluation.statistics.comparison import (
        INTERVAL_NOTE,
        letters,
        load_evaluation,
        score_table,
        shared_scores,
    )

    found = [load_evaluation(path) for path in args.evaluation]
    names = shared_scores(found)
    for letter, evaluation in zip(letters(len(found)), found, strict=True):
        sys.stdout.write(f"{letter}: {evaluation.name}\n")
    models = differing([evaluation.scores[names[0]].model for evaluation in found])
    protocols: dict[str, Any] = {}
    for name in names:
        protocols |= differing_protocols([evaluation.scores[name] for evaluation in found])
    sys.stdout.write(_section("models", models) + _section("protocols", protocols))
    if protocols and not args.mixed_protocols:
        sys.stdout.write(
            "\nThe protocols differ, so no values are shown; to show them nevertheless: --mixed-protocols\n"
        )
        return 1
    note = f"\n{INTERVAL_NOTE}\n" if len(found) == 2 else ""
    sys.stdout.write("\n" + _aligned(score_table(found, mixed_protocols=args.mixed_protocols)) + note)
    return 0


def _section(title: str, different: dict[str, list[Any]]) -> str:
    if not different:
        return f"\n{title}: the same\n"
    lines = [f"  {name}: {' | '.join(_shown(value) for value in values)}" for name, values in different.items()]
    return "\n".join([f"\n{title} differ:", *lines, ""])


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return shortened(text.replace("\n", "\\n"), MAX_SHOWN)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = (
        "  ".join(f"{cell:<{width}}" if at == 0 else f"{cell:>{width}}" for at, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)
