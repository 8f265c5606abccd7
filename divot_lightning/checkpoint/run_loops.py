"""Lightning's training loops with two moments more: a step is logged, and a validation is made up for.

A checkpoint that is taken in `on_train_batch_end` stands before the row of its own step and before the validation that
is due there; a run that is killed in between would lose both for good. These loops call `on_step_logged` of the
callbacks once the row is written, and a checkpoint says whether a validation was still owed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop


class LoggedStepLoop(_TrainingEpochLoop):
    """Calls `on_step_logged(trainer)` of each callback that has it, after every batch, when its metrics are logged.

    Attributes:
        owes_validation: Whether a validation is due after the last step and has not ended; part of checkpoints.
    """

    owes_validation = False

    def advance(self, data_fetcher: Any) -> None:
        """Train on a batch, then tell callbacks."""
        super().advance(data_fetcher)
        self.owes_validation = self._should_check_val_fx(data_fetcher)
        with self._in_batch_end():
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "on_step_logged"):
                    callback.on_step_logged(self.trainer)

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate if it is time; then nothing is owed."""
        super().on_advance_end(data_fetcher)
        self.owes_validation = False

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Return what checkpoints hold."""
        return {**super().on_save_checkpoint(), "owes_validation": self.owes_validation}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds; older ones say nothing."""
        super().on_load_checkpoint(state_dict)
        self.owes_validation = state_dict.get("owes_validation", False)

    @contextmanager
    def _in_batch_end(self) -> Iterator[None]:
        """Count as in `on_train_batch_end`, the only place in a step where Lightning expects a checkpoint."""
        counters = (self.batch_progress.total, self.batch_progress.current)
        for counter in counters:
            counter.completed -= 1
        yield
        for counter in counters:
            counter.completed += 1

    def make_up_validation(self) -> None:
        """Validate as after the step that a checkpoint was taken at; all else stays as the checkpoint left it."""
        trainer, connector = self.trainer, self.trainer._logger_connector
        restored, first_iteration = self.val_loop.state_dict(), connector._first_loop_iter
        trainer.validating = True
        self.val_loop.restarting = False
        self.val_loop.run()
        trainer.training = True
        connector._first_loop_iter = first_iteration
        self.val_loop.load_state_dict(restored)
        self.val_loop._has_run = False
        self.owes_validation = False


class ResumingFitLoop(_FitLoop):
    """Makes up for the validation that the checkpoint stands before, also where no step is left to take."""

    def run(self) -> None:
        """Validate if a validation is owed, then train."""
        loop = self.epoch_loop
        if isinstance(loop, LoggedStepLoop) and loop.owes_validation:
            loop.make_up_validation()
        super().run()


def use_resuming_loops(trainer: Trainer) -> None:
    """Replace the training loops of a trainer that was just built."""
    former = trainer.fit_loop
    trainer.fit_loop = ResumingFitLoop(trainer, min_epochs=former.min_epochs, max_epochs=former.max_epochs)
    trainer.fit_loop.epoch_loop = LoggedStepLoop(trainer, min_steps=former.min_steps, max_steps=former.max_steps)
