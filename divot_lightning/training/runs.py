"""Train, resume and validate a run: the work of `divot fit`, `resume`, `validate` and `test`."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch.trainer.states import TrainerStatus

from divot_lightning.checkpoint.folders import CHECKPOINTS, checkpoint_step, choose_checkpoint, newest_checkpoint
from divot_lightning.checkpoint.run_state import RunState
from divot_lightning.distributed.environment import is_first_process, say
from divot_lightning.distributed.launcher import is_started_by_rank_zero, watched
from divot_lightning.distributed.same_start import Start
from divot_lightning.distributed.signals import INTERRUPTED_EXIT_CODE, exit_code
from divot_lightning.errors import UserError, first_line
from divot_lightning.training.config_changes import LENGTH, changed_settings, read_config
from divot_lightning.training.reporting.services import open_services
from divot_lightning.training.run_folder import FINISHED, STOPPED, read_finished, where_paths_count
from divot_lightning.training.training_args import run_args
from divot_lightning.training.training_cli import TrainingCLI

MAX_CHANGES_SHOWN = 20


def fit(argv: list[str], command: str = "divot fit") -> int:
    """Train a new run. `divot fit` takes the lock of the folder here; `divot resume` has it already.

    Args:
        argv: Options, `--config` with paths of files.
        command: The command that the user typed.

    Returns:
        The exit status.
    """
    with contextlib.ExitStack() as held:
        cli = TrainingCLI(argv, command, "start", held if command == "divot fit" else None)
        return _fit(cli, None)


def resume(run: Path, argv: list[str]) -> int:
    """Resume a run from its newest checkpoint, or from step 0 when it has none.

    Args:
        run: The run folder; this process holds its lock.
        argv: Options that repeat the run, then those that change it.

    Returns:
        The exit status.
    """
    checkpoint, before = _chosen(run), read_config(run)
    with explain_relative_paths(run, before):
        return _resume(run, argv, checkpoint, before)


def _resume(run: Path, argv: list[str], checkpoint: Path | None, before: str) -> int:
    cli = TrainingCLI(argv, "divot resume", "resume")
    changes = changed_settings(before, cli.saved_config)
    if (run / FINISHED).is_file() and not any(change.key in LENGTH for change in changes):
        say(f"{run} is finished: nothing to do.\nTo train it for longer: --trainer.max_steps N\n", sys.stdout)
        return 0
    if checkpoint is None and (run / FINISHED).is_file():
        _refuse_restart(run)
    say(f"{run}: continuing after step {checkpoint_step(checkpoint) if checkpoint else 0}\n")
    for change in changes[:MAX_CHANGES_SHOWN]:
        say(f"  changed {change}\n")
    if len(changes) > MAX_CHANGES_SHOWN:
        say(f"  and {len(changes) - MAX_CHANGES_SHOWN} more settings\n")
    try:
        return _fit(cli, checkpoint)
    except UserError as error:
        stages = [change for change in changes if change.key == "model.class_path"]
        if not stages:
            raise
        raise UserError(
            f"{run} was trained by {stages[0].old}, and {stages[0].new} cannot continue it: {first_line(error)}\n"
            "Another stage is a run of its own: divot fit --config RECIPE --run ANOTHER_FOLDER"
        ) from error


def _refuse_restart(run: Path) -> None:
    steps = read_finished(run).get("steps", 0)
    if steps:
        raise UserError(
            f"{run} is finished, after step {steps}, and has no checkpoint that it can be trained for longer from\n"
            f"copy one into {run / CHECKPOINTS}, or start a new run: divot fit --run ANOTHER_FOLDER"
        )


def _chosen(run: Path) -> Path | None:
    choice = choose_checkpoint(run)
    say(choice.warnings())
    return choice.checkpoint


@contextlib.contextmanager
def explain_relative_paths(run: Path, config: str) -> Iterator[None]:
    """Add to a `UserError` about a missing relative path which folder it is relative to."""
    try:
        yield
    except UserError as error:
        hint = where_paths_count(run, yaml.safe_load(config), str(error))
        if not hint:
            raise
        raise UserError(f"{error}\n{hint}") from error


def validate(run: Path, argv: list[str], verb: Literal["validate", "test"], checkpoint: Path) -> int:
    """Compute the losses of a checkpoint on the validation or test data of its run; Lightning prints the table.

    Args:
        run: The run folder.
        argv: Options that repeat the run.
        verb: "validate" or "test", for the data of that name.
        checkpoint: A checkpoint of this run.

    Returns:
        The exit status.

    Raises:
        UserError: The run has no such data.
    """
    with explain_relative_paths(run, read_config(run)):
        cli = TrainingCLI(argv, f"divot {verb}", "measure")
        cli.checkpoint.resume_from = checkpoint
        with watched(cli.trainer):
            measured = getattr(cli.trainer, verb)(cli.model, cli.datamodule)
    if not measured:
        data = {"validate": "validation", "test": "test"}[verb]
        raise UserError(f"{run} has no {data} data, so nothing was measured\ngive some: --data.{data} DATA")
    return 0


ON_CPU = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "precision": "32-true"}
"""Settings of the trainer to read a checkpoint with one process, whatever it was trained on."""


def load_stage(run: Path, checkpoint: Path) -> Any:
    """Build the stage of a run in this process, with the weights of a checkpoint; averaged ones if the run uses them.

    Args:
        run: The run folder.
        checkpoint: A checkpoint of this run, from any number of processes.

    Returns:
        The stage, on the CPU.

    Raises:
        UserError: The checkpoint is damaged, or does not fit the run or the folders of frozen weights.
    """
    words = [word for name, value in ON_CPU.items() for word in (f"--trainer.{name}", value)]
    with explain_relative_paths(run, read_config(run)):
        cli = TrainingCLI(run_args(run, words), "divot export", "measure")
        cli.model.configure_model()
    RunState(cli.trainer).load_stage(cli.model, checkpoint)
    return cli.model


def _fit(cli: TrainingCLI, checkpoint: Path | None) -> int:
    cli.checkpoint.resume_from = checkpoint
    cli.same_start.start = Start.of(checkpoint, cli.saved_config)
    if is_first_process():
        (cli.run_folder / STOPPED).unlink(missing_ok=True)
    open_services(cli.trainer.loggers)
    try:
        with cli.stop_signals.handled(), watched(cli.trainer):
            cli.trainer.fit(cli.model, cli.datamodule)
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        hint = "--trainer.val_check_interval 1.0 validates once per epoch"
        raise UserError(f"{first_line(error, None)}\n{hint}") from error
    except SystemExit:
        if cli.trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        return _report_stop(cli)
    return 0


def _report_stop(cli: TrainingCLI) -> int:
    step, stopped_by, saved = cli.trainer.global_step, cli.stop_on_signal.stopped_by, newest_checkpoint(cli.run_folder)
    saved_step = checkpoint_step(saved) if saved else 0
    how = f"stopped by {stopped_by.name} after" if stopped_by else "stopped after"
    lost = "" if step == saved_step else f" without saving it; steps after {saved_step} will be repeated"
    say(f"{how} step {step}{lost}; continue with: divot resume {cli.run_folder}\n")
    if is_started_by_rank_zero():
        return 0  # the first process reports for the job; another exit status than 0 would count as a failure
    return exit_code(stopped_by) if stopped_by else INTERRUPTED_EXIT_CODE
