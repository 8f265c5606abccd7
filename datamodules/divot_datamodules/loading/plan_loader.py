"""The loaders of training, and of one pass over the data for validation and test."""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from divot_datamodules.loading.batch_reader import BatchReader, PlannedStep
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.source_order import SampleIndex
from divot_lightning.parts.batch import Batch


class PlanLoader:
    """The loader of batches for Lightning's loops; it measures how long the loops wait for them.

    Attributes:
        waited_seconds: Time that the caller waited for batches so far.
    """

    def __init__(self, reader: BatchReader, rank: int, world_size: int) -> None:
        self.reader, self.rank, self.world_size = reader, rank, world_size
        self.waited_seconds = 0.0

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            self.waited_seconds += time.perf_counter() - begin
            if batch is None:
                return
            yield batch


class TrainLoader(PlanLoader):
    """The training batches from the current position on: without end, or to the end of the epoch.

    Args:
        reader: Reads steps.
        position: Position of training, read when iteration begins. Who uses the batches moves it.
        rank: Rank of this process.
        world_size: Number of training processes.
        moves: Whether a request for the next batch moves the position behind the last one; for use without a trainer,
            whose callback moves it otherwise.
    """

    def __init__(
        self, reader: BatchReader, position: TrainPosition, rank: int = 0, world_size: int = 1, *, moves: bool = False
    ) -> None:
        super().__init__(reader, rank, world_size)
        self.position, self.moves = position, moves
        self.began_at: int | None = None

    def __len__(self) -> int:
        """Return the number of steps of an exact epoch."""
        steps = self.position.plan.steps_per_epoch
        if steps is None:
            raise TypeError("an endless order has no length")
        return steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches; nothing is read before the first one is requested."""
        self.began_at = self.position.restored
        for batch in self._timed(self.reader.read(self._steps())):
            yield batch
            if self.moves:
                self.position.used(batch["position"])

    @property
    def began_too_early(self) -> bool:
        """Whether iteration began before a checkpoint set the position."""
        return self.began_at is not None and self.began_at != self.position.restored

    def _steps(self) -> Iterator[PlannedStep]:
        plan, first = self.position.plan, self.position.step
        steps = plan.steps_per_epoch
        last = (first // steps + 1) * steps if steps else None
        for step in self.position.steps_from(first):
            if last is not None and step >= last:
                return
            yield PlannedStep(step, plan.batch(step, self.rank, self.world_size), self._indices_from(step))

    def trial(self) -> Iterator[Batch]:
        """Yield the first batch of each source that has its own steps, in their order; one batch if sources are mixed.

        Training does not begin with it: the position does not change.
        """
        plan = self.position.plan
        kinds = 1 if plan.mixes_samples else len(plan.sources)
        first: dict[int, PlannedStep] = {}
        for planned in self._steps():
            first.setdefault(planned.indices[0].source if kinds > 1 else 0, planned)
            if len(first) == kinds:
                break
        yield from self.reader.read([first[source] for source in sorted(first)])

    def _indices_from(self, step: int) -> Iterator[SampleIndex]:
        """Yield as many entries of the order as there are samples, from this step on."""
        plan = self.position.plan
        indices = (index for later in self.position.steps_from(step) for index in plan.batch(later))
        return islice(indices, sum(source.size for source in plan.sources))


class EvaluationLoader(PlanLoader):
    """The batches of one pass in order; each rank has the same number of batches.

    Args:
        reader: Reads steps.
        batch_size: Samples of a step, in all ranks together.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, reader: BatchReader, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(reader, rank, world_size)
        self.batch_size = batch_size
        counts = [
            (source, shard, count)
            for source, opened in enumerate(reader.sources)
            for shard, count in enumerate(opened.source.counts)
        ]
        self._shards = [(source, shard) for source, shard, _ in counts]
        self._ends = np.cumsum([count for _, _, count in counts], dtype=np.int64)

    @property
    def size(self) -> int:
        """Samples of the pass."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        """Return the number of steps."""
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches."""
        yield from self._timed(self.reader.read(self._steps()))

    def _steps(self) -> Iterator[PlannedStep]:
        for step in range(len(self)):
            first = step * self.batch_size
            numbers = range(first, min(first + self.batch_size, self.size))[self.rank :: self.world_size]
            others = (self._index(number % self.size) for number in range(first, first + self.size))
            yield PlannedStep(step, [self._index(number) for number in numbers], others)

    def _index(self, number: int) -> SampleIndex:
        at = int(np.searchsorted(self._ends, number, side="right"))
        source, shard = self._shards[at]
        count = self.reader.sources[source].source.counts[shard]
        return SampleIndex(number, source, 0, shard, number - int(self._ends[at]) + count)
