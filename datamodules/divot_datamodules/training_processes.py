"""The training processes as the data see them: who takes which share, who indexes first, whether all agree."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lightning.pytorch import Trainer

from divot_lightning.errors import UserError


@dataclass(frozen=True)
class TrainingProcesses:
    """This process among all training processes.

    Attributes:
        trainer: Lightning's; None for a single process without one.
    """

    trainer: Trainer | None = None

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def count(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer is not None else 1

    def check_share(self, batch_sizes: Sequence[int]) -> None:
        """Refuses batch sizes that the processes cannot share evenly.

        Args:
            batch_sizes: Samples of a step, all processes together.

        Raises:
            UserError: With the sizes and the numbers of processes that would do.
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

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Lets one process of each machine go first, so that the others find what it left on disk."""
        first = self.trainer is None or self.trainer.local_rank == 0
        if not first:
            self._wait("data: one first")
        try:
            yield
        finally:
            if first:
                self._wait("data: one first")

    def check_same(self, what: str, seen: Sequence[str]) -> None:
        """Refuses processes that see other data than the first.

        Args:
            what: For the message.
            seen: Fingerprints.
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
