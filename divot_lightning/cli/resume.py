"""`divot resume`: continue a stopped run, or start it; one command for both."""

import contextlib
import sys
from pathlib import Path

from divot_lightning.distributed.environment import is_first_process
from divot_lightning.io.quick_imports import quick_imports
from divot_lightning.training.run_folder import CONFIG, FINISHED, require_run
from divot_lightning.training.run_lock import run_lock
from divot_lightning.training.training_args import find_run_folder, names_recipe, resolve_recipes, run_args, wants_help

HELP = """usage: divot resume RUN [--config RECIPE] [--key value ...]
       divot resume --config RECIPE --run RUN [--key value ...]

Continue a run from its newest complete checkpoint, with any number of processes. With a recipe, the same command also
starts a run that does not exist yet, so a job that is queued again and again can use it unchanged.

The command line wins over the recipe, and the recipe wins over the settings in RUN/config.yaml; differences from
RUN/config.yaml are printed. Optimizer state and the positions in the schedule and in the data come from the checkpoint;
learning rates and the form of the schedule come from the settings.

RUN/config.yaml names classes to build, so it can run code: resume only runs that you trust. A damaged checkpoint is
reported, and the one before it is used. If no checkpoint is intact, the run is refused; it never starts again from 0.

If the run has finished, nothing is done. To train it for longer: divot resume RUN --trainer.max_steps N

exit status: 0 finished, 75 stopped by SIGTERM or SIGUSR1 and saved, 130 stopped by Ctrl-C and saved (a second Ctrl-C
             stops without saving), 2 an error that you can fix, 1 any other error
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `divot resume`, and return the exit status."""
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

    with quick_imports():
        from divot_lightning.training.runs import fit, resume

    if (run / CONFIG).is_file():
        return resume(run, run_args(run, words))
    return fit([*resolve_recipes(words), "--run", str(run)], "divot resume")
