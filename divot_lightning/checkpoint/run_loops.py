"""Lightning's training loops with two additions: a hook after a step is logged, and pending validations.

A checkpoint taken in `on_train_batch_end` comes before the row of its own step and before the validation that is due
then; a run that is killed in between would lose both. These loops call `on_step_logged` of the callbacks after the row
is written, and a checkpoint records whether a validation is pending.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop


class LoggedStepLoop(_TrainingEpochLoop):
    """Calls `on_step_logged(trainer)` of each callback that has it, after every batch, when its metrics are logged.

    Attributes:
        owes_validation: Whether a validation is due after the last step and has not ended; stored in checkpoints.
    """

    owes_validation = False

    def advance(self, data_fetcher: Any) -> None:
        """Train on a batch, then call the callbacks."""
        super().advance(data_fetcher)
        self.owes_validation = self._should_check_val_fx(data_fetcher)
        with self._in_batch_end():
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "on_step_logged"):
                    callback.on_step_logged(self.trainer)

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate if it is time; no validation is pending afterwards."""
        super().on_advance_end(data_fetcher)
        self.owes_validation = False

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Return the state for checkpoints."""
        return {**super().on_save_checkpoint(), "owes_validation": self.owes_validation}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; checkpoints of earlier versions have no pending validation."""
        super().on_load_checkpoint(state_dict)
        self.owes_validation = state_dict.get("owes_validation", False)

    @contextmanager
    def _in_batch_end(self) -> Iterator[None]:
        """Set the counters as in `on_train_batch_end`, the only hook in which Lightning expects a checkpoint."""
        counters = (self.batch_progress.total, self.batch_progress.current)
        for counter in counters:
            counter.completed -= 1
        yield
        for counter in counters:
            counter.completed += 1

    def make_up_validation(self) -> None:
        """Run the validation that is due after the step of a checkpoint; all other state stays as in the checkpoint."""
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
    """Runs the pending validation of a checkpoint first, also if no step is left."""

    def run(self) -> None:
        """Validate if a validation is pending, then train."""
        loop = self.epoch_loop
        if isinstance(loop, LoggedStepLoop) and loop.owes_validation:
            loop.make_up_validation()
        super().run()


def use_resuming_loops(trainer: Trainer) -> None:
    """Replace the training loops of a trainer that has not trained yet; its data are connected already."""
    former = trainer.fit_loop
    if isinstance(former, ResumingFitLoop):
        return
    trainer.fit_loop = ResumingFitLoop(trainer, min_epochs=former.min_epochs, max_epochs=former.max_epochs)
    trainer.fit_loop.epoch_loop = LoggedStepLoop(trainer, min_steps=former.min_steps, max_steps=former.max_steps)
    trainer.fit_loop._data_source = former._data_source
    trainer.fit_loop.epoch_loop.val_loop._data_source = former.epoch_loop.val_loop._data_source
