"""`divot validate`: measure a run on its validation data."""

import sys

from divot_lightning.cli.run_folder import newest_checkpoint
from divot_lightning.cli.training_args import run_args, split_run, wants_help
from divot_lightning.errors import UserError

HELP = """usage: divot validate RUN [--key value ...]

Measure the newest checkpoint of a run on its validation data; prints the metrics and writes nothing.
"""


def main(argv: list[str]) -> int:
    """Run `divot validate`.

    Args:
        argv: The words after `divot validate`.

    Returns:
        The exit status.
    """
    if wants_help(argv):
        sys.stdout.write(HELP)
        return 0
    run, overrides = split_run(argv, "validate")
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint yet.\nTo train it: divot resume {run}")

    from divot_lightning.cli.training import measure

    return measure(run_args(run, overrides), "validate", checkpoint)
