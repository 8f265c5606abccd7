"""`divot resume`: start a run, or continue with it where it was stopped; one command for both."""

import contextlib
import sys
from pathlib import Path

from divot_lightning.distributed.environment import is_first_process
from divot_lightning.training.run_folder import CONFIG, FINISHED, require_run
from divot_lightning.training.run_lock import run_lock
from divot_lightning.training.training_args import find_run_folder, names_recipe, resolve_recipes, run_args, wants_help

HELP = """usage: divot resume RUN [--config RECIPE] [--key value ...]
       divot resume --config RECIPE --run RUN [--key value ...]

Continue with a run from its newest complete checkpoint, with any number of processes. With a recipe the same command
also starts the run where there is none yet, so it can stand unedited in a job that is queued again and again.

What counts: the command line over the recipe, the recipe over the settings in RUN/config.yaml. What differs from
those is printed. Optimizer moments, the place in the schedule and in the data come from the checkpoint; learning
rates and the schedule's form follow the settings.

RUN/config.yaml names the classes to build, so it is like a program: resume runs that you trust. A damaged checkpoint is
named; the one before it is taken, and without one the run is refused, never begun anew.

A run that finished says so. To train a finished run for longer: divot resume RUN --trainer.max_steps N

exit status: 0 finished, 75 stopped by SIGTERM or SIGUSR1 with everything saved, 130 stopped by Ctrl-C and saved
             (a second Ctrl-C stops without saving), 2 something that you can fix, 1 anything else
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
    run, words = find_run_folder(argv)
    if not names_recipe(words):
        require_run(run)
    with run_lock(run) if is_first_process() else contextlib.nullcontext():
        return _train(run, words)


def _train(run: Path, words: list[str]) -> int:
    if (run / FINISHED).is_file() and not words:
        sys.stdout.write(f"{run} is finished: nothing to do.\nTo train it for longer: --trainer.max_steps N\n")
        return 0

    from divot_lightning.training.runs import fit, resume

    if (run / CONFIG).is_file():
        return resume(run, run_args(run, words))
    return fit([*resolve_recipes(words), "--run", str(run)], "divot resume")
