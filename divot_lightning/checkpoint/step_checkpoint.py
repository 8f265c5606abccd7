"""The callback that saves a run's state, and its settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from divot_lightning.checkpoint.folder_writing import CheckpointNotWritten
from divot_lightning.checkpoint.folders import (
    CHECKPOINTS,
    checkpoint_name,
    checkpoint_step,
    complete_checkpoints,
    read_scores,
    remove_folder,
    remove_leftovers,
    steps_to_remove,
    write_score,
)
from divot_lightning.checkpoint.run_loops import use_resuming_loops
from divot_lightning.checkpoint.run_state import RunState, require_known_strategy
from divot_lightning.distributed.environment import say
from divot_lightning.errors import UserError, require_at_least


@dataclass
class CheckpointConfig:
    """When a run's state is saved, and which checkpoints stay.

    Attributes:
        every_steps: Optimizer steps between two checkpoints; the last step, Ctrl-C and signals save too.
        keep_all: Keep every checkpoint.
        keep_last: Checkpoints that are kept because they are the newest.
        keep_every: Also keep those whose step is a multiple of this; none by default.
        keep_best: Also keep this many with the best `metric`.
        metric: The metric of `keep_best`: a name that validation logs.
        mode: Whether a small or a large `metric` is better.
        on_full_disk: Whether a checkpoint that cannot be written stops the run, or is reported and skipped.
    """

    every_steps: int = 200
    keep_all: bool = False
    keep_last: int = 1
    keep_every: int | None = None
    keep_best: int = 0
    metric: str = "validation/loss"
    mode: Literal["min", "max"] = "min"
    on_full_disk: Literal["continue", "stop"] = "stop"

    def __post_init__(self) -> None:
        """Refuse numbers that are too small."""
        for name, least in (("every_steps", 1), ("keep_last", 1), ("keep_every", 1), ("keep_best", 0)):
            require_at_least(least, "checkpoint.", **{name: getattr(self, name)})


class StepCheckpoint(Checkpoint):
    """Saves `<run>/checkpoints/step_<n>` every so many steps and at the end, and removes those that are not kept.

    It also loads the checkpoint that a run continues from; `trainer.fit` gets no `ckpt_path`.

    Args:
        run: The run folder.
        config: When to save and which checkpoints to keep.
        resume_from: The checkpoint that the run continues from, or that is validated; None for a new run.
    """

    def __init__(self, run: Path, config: CheckpointConfig, resume_from: Path | None = None) -> None:
        self.folder = run / CHECKPOINTS
        self.run = run
        self.config = config
        self.resume_from = resume_from
        self.saved_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy without checkpoints; let the trainer call `on_step_logged`."""
        require_known_strategy(trainer)
        self.state = RunState(trainer)
        if stage == "fit":
            use_resuming_loops(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore everything, once optimizers exist and before the stage's own hook."""
        self._load(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the weights to test."""
        self._load(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the weights to validate, outside training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._load(trainer)

    def _load(self, trainer: Trainer) -> None:
        if self.resume_from is not None:
            self.state.load(self.resume_from)
            self.saved_step = checkpoint_step(self.resume_from)  # a pending validation need not save it again

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove leftovers of a killed process; the checkpoint that the run resumes from is not saved again."""
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            remove_leftovers(self.folder)

    def on_step_logged(self, trainer: Trainer) -> None:
        """Save when it is time: before a validation, which may take long and is repeated by a resume."""
        scored = self.config.keep_best > 0 and trainer.fit_loop.epoch_loop.owes_validation  # type: ignore[attr-defined]
        # Lightning would count the step twice if it were saved at the very end, and the run trained for longer then.
        last = 0 < trainer.estimated_stepping_batches <= trainer.global_step
        if scored or last or trainer.global_step % self.config.every_steps == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metric for the checkpoint of this step, which is taken now if there is none.

        Raises:
            UserError: Validation does not log the metric.
        """
        if not self.config.keep_best or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        score = trainer.callback_metrics.get(self.config.metric)
        if score is None:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"checkpoint.metric is {self.config.metric!r}, which validation does not log\nit logs: {known}"
            )
        self.save(trainer)
        if trainer.is_global_zero and trainer.global_step > 0:
            write_score(self.folder, trainer.global_step, float(score))
            self._remove_others()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step of a run that ended early, as by early stopping."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save the current step, once; all ranks call it together.

        Raises:
            CheckpointNotWritten: It could not be written, and `on_full_disk` says stop.
        """
        step = trainer.global_step
        if step == self.saved_step:
            return
        self.saved_step = step
        try:
            self.state.save(self.folder / checkpoint_name(step))
        except CheckpointNotWritten as failure:
            if self.config.on_full_disk == "stop":
                raise
            say(f"step {step} continues without a checkpoint: {failure}\n")
            return
        if trainer.is_global_zero:
            self._remove_others()

    def _remove_others(self) -> None:
        if self.config.keep_all:
            return
        folders = {checkpoint_step(folder): folder for folder in complete_checkpoints(self.run)}
        for step in steps_to_remove(
            folders,
            read_scores(self.folder),
            keep_last=self.config.keep_last,
            keep_every=self.config.keep_every,
            keep_best=self.config.keep_best,
            mode=self.config.mode,
        ):
            remove_folder(folders[step])
