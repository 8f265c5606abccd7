"""`divot test`: measure a run on its test data."""

import sys

from divot_lightning.cli.run_folder import newest_checkpoint
from divot_lightning.cli.training_args import run_args, split_run, wants_help
from divot_lightning.errors import UserError

HELP = """usage: divot test RUN [--key value ...]

Measure the newest checkpoint of a run on its test data; prints the metrics and writes nothing.
"""


def main(argv: list[str]) -> int:
    """Run `divot test`.

    Args:
        argv: The words after `divot test`.

    Returns:
        The exit status.
    """
    if wants_help(argv):
        sys.stdout.write(HELP)
        return 0
    run, overrides = split_run(argv, "test")
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint yet.\nTo train it: divot resume {run}")

    from divot_lightning.cli.training import measure

    return measure(run_args(run, overrides), "test", checkpoint)
