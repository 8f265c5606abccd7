"""`divot resume`: go on with a run that was stopped."""

import sys

from divot_lightning.cli.run_folder import FINISHED, newest_checkpoint
from divot_lightning.cli.training_args import run_args, split_run, wants_help

HELP = """usage: divot resume RUN [--key value ...]

Go on with a run from its newest checkpoint, with the settings in RUN/config.yaml; options win over them.
A run that finished says so. To train a finished run for longer: divot resume RUN --trainer.max_steps N
"""


def main(argv: list[str]) -> int:
    """Run `divot resume`.

    Args:
        argv: The words after `divot resume`.

    Returns:
        The exit status.
    """
    if wants_help(argv):
        sys.stdout.write(HELP)
        return 0
    run, overrides = split_run(argv, "resume")
    if (run / FINISHED).is_file() and not overrides:
        sys.stdout.write(f"{run} is finished: nothing to do.\nTo train it for longer: --trainer.max_steps N\n")
        return 0

    from divot_lightning.cli.training import go_on

    return go_on(run_args(run, overrides), newest_checkpoint(run))
