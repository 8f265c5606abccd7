"""Start, go on with and measure a run: what `divot fit`, `resume`, `validate` and `test` share."""

import sys
from pathlib import Path
from typing import Literal

from lightning.pytorch.trainer.states import TrainerStatus

from divot_lightning.cli.run_folder import checkpoint_step
from divot_lightning.cli.training_cli import TrainingCLI


def start(argv: list[str]) -> int:
    """Train a new run.

    Args:
        argv: Options, `--config` with paths of files.

    Returns:
        The exit status.
    """
    cli = TrainingCLI(argv, "divot fit", "start")
    return _fit(cli, None)


def go_on(argv: list[str], checkpoint: Path | None) -> int:
    """Train an existing run from `checkpoint` on, or from its start when it has none.

    Args:
        argv: Options that repeat the run.
        checkpoint: A checkpoint of this run.

    Returns:
        The exit status.
    """
    cli = TrainingCLI(argv, "divot resume", "resume")
    step = checkpoint_step(checkpoint) if checkpoint else 0
    sys.stderr.write(f"{cli.run_folder}: going on after step {step}\n")
    return _fit(cli, checkpoint)


def measure(argv: list[str], verb: Literal["validate", "test"], checkpoint: Path) -> int:
    """Measure a checkpoint on the validation or test data of its run; Lightning prints the table.

    Args:
        argv: Options that repeat the run.
        verb: Which data.
        checkpoint: A checkpoint of this run.

    Returns:
        The exit status.
    """
    cli = TrainingCLI(argv, f"divot {verb}", "measure")
    getattr(cli.trainer, verb)(cli.model, cli.datamodule, ckpt_path=str(checkpoint), weights_only=False)
    return 0


def _fit(cli: TrainingCLI, checkpoint: Path | None) -> int:
    ckpt_path = str(checkpoint) if checkpoint else None
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=ckpt_path, weights_only=False)
    except SystemExit:
        if cli.trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        sys.stderr.write(f"stopped after step {cli.trainer.global_step}; go on with: divot resume {cli.run_folder}\n")
        return 130
    return 0
