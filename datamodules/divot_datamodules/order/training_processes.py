"""The training processes as the data need them: rank and count, which one indexes first, whether their data agree."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from divot_lightning.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingProcesses:
    """This process among all training processes.

    Attributes:
        trainer: Lightning's; None for a single process without one.
    """

    trainer: Trainer | None = None

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def count(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer is not None else 1

    def check_share(self, batch_sizes: Sequence[int]) -> None:
        """Refuse batch sizes that the number of processes does not divide.

        Args:
            batch_sizes: Samples of a step, in all processes together.

        Raises:
            UserError: It names the batch sizes and the numbers of processes that would fit.
        """
        for size in batch_sizes:
            if size < 1:
                raise UserError(f"batch_size is {size}; it must be at least 1, all processes together.")
            if size % self.count:
                below = size // self.count * self.count
                near = f"{below} or {below + self.count}" if below else str(self.count)
                fitting = [str(number) for number in range(1, size + 1) if size % number == 0]
                raise UserError(
                    f"batch_size is {size}, which {self.count} processes cannot share evenly: it counts the samples "
                    "of a step in all processes together.\n"
                    f"Take {near}; or as many processes as divide it: {', '.join(fitting[:8])}."
                )

    def check_end(self, *, exact: bool, validates: bool) -> None:
        """Refuse a training that never ends, and warn of a validation that never runs.

        Args:
            exact: Whether epochs end.
            validates: Whether validation data are given.

        Raises:
            UserError: The order is endless and nothing else ends training.
        """
        if self.trainer is None or exact or isinstance(self.trainer.limit_train_batches, int):
            return
        loop = self.trainer.fit_loop
        timed = any(isinstance(callback, Timer) for callback in vars(self.trainer)["callbacks"])
        if loop.max_epochs != -1 and loop.max_steps == -1 and not timed:
            raise UserError(
                "max_steps is not set and data.epoch is endless, so training would not end: an epoch without an end "
                f"is never over, and max_epochs {loop.max_epochs} never reached.\n"
                "Set trainer.max_steps, or data.epoch to exact."
            )
        interval = self.trainer.val_check_interval
        if validates and isinstance(interval, float) and interval == 1.0:  # 1, which equals it, is a number of batches
            logger.warning(
                "validation data are given, but there will be no validation before training ends: it comes at the end "
                "of an epoch, and data.epoch is endless. Set trainer.val_check_interval to a number of steps."
            )

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Let one process of each machine run the block first, so that the others find its files on the disk."""
        first = self.trainer is None or self.trainer.local_rank == 0
        if not first:
            self._wait("data: one first")
        try:
            yield
        finally:
            if first:
                self._wait("data: one first")

    def check_same(self, what: str, seen: Sequence[str]) -> None:
        """Refuse to train if this process sees other data than process 0.

        Args:
            what: Name of the data, for the message.
            seen: Fingerprints of the data that this process sees.
        """
        if self.trainer is not None and self.count > 1:
            first: Sequence[str] = self.trainer.strategy.broadcast(list(seen))
            if first != list(seen):
                raise UserError(
                    f"process {self.rank} sees other {what} than process 0: shards or lists differ between machines.\n"
                    "Give all of them the same files."
                )

    def _wait(self, name: str) -> None:
        if self.trainer is not None and self.count > 1:
            self.trainer.strategy.barrier(name)
