"""`divot validate`, and what it shares with `divot test`: measure a run. No torch until the run is found."""

import sys
from typing import Literal

from divot_lightning.checkpoint.folders import choose_checkpoint
from divot_lightning.distributed.environment import say
from divot_lightning.errors import UserError
from divot_lightning.io.quick_imports import quick_imports
from divot_lightning.training.training_args import run_args, split_run, wants_help

HELP = """usage: divot {verb} RUN [--key value ...]

Measure the newest checkpoint of a run on its {data} data. Prints the metrics, and writes nothing.
"""


def measure_run(verb: Literal["validate", "test"], data: str, argv: list[str]) -> int:
    """Measure the newest checkpoint of a run, or show the help.

    Args:
        verb: The command.
        data: Name of the data in the help.
        argv: The words after it.

    Returns:
        The exit status.
    """
    if wants_help(argv):
        sys.stdout.write(HELP.format(verb=verb, data=data))
        return 0
    run, overrides = split_run(argv, verb)
    choice = choose_checkpoint(run)
    if choice.checkpoint is None:
        raise UserError(f"{run} has no checkpoint yet.\nTo train it: divot resume {run}")
    say(choice.warnings())

    with quick_imports():
        from divot_lightning.training.runs import validate

    return validate(run, run_args(run, overrides), verb, choice.checkpoint)


def main(argv: list[str]) -> int:
    """Run the command with the words after `divot validate`, and return the exit status."""
    return measure_run("validate", "validation", argv)
