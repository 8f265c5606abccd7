"""From the plan of the order to batches: asks for samples ahead, takes them in order, leaves out what is unusable.

Batches of a step are the same whatever the number of workers, and the shares of all ranks together are the same
whatever the number of ranks: what is drawn for a sample depends on the seed and on its slot's number only.

Shape letters: B batch.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.sample_errors import SampleError
from divot_datamodules.decoding.samples import Item, Sample, SampleDecoder, check_item, collate
from divot_datamodules.loading.decode_pool import Decode, Decoding, Pending, Request
from divot_datamodules.loading.decoded_cache import DecodedCache, SampleId
from divot_datamodules.loading.skipped_samples import SkippedSample, SkippedSamples
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.order_plan import SampleIndex
from divot_datamodules.shards.sources import SampleSource
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.sequence_limits import SampleLimits

Batch = dict[str, Any]
MakeItems = Callable[[Sample, np.random.Generator], list[Item]]
PERMANENT_ERRORS = ("deadline", "worker_died")
"""Reasons that cost so much that a sample is not tried again in the next pass."""


@dataclass(frozen=True)
class LoadedSource:
    """A source with what is done to its samples.

    Attributes:
        source: Where the bytes come from.
        decoder: Decodes a sample.
        make_items: Turns a decoded sample into what the stage trains on, with a generator for what is left open.
    """

    source: SampleSource
    decoder: SampleDecoder
    make_items: MakeItems


def draw(seed: int, sample_index: int, purpose: int) -> np.random.Generator:
    """Return the generator of what is drawn for one slot.

    Args:
        seed: Of the data.
        sample_index: Of the slot.
        purpose: 0 for decoding, 1 for tasks, so that a decoded sample from the cache changes nothing.
    """
    return np.random.default_rng([seed, sample_index, purpose])


def decode_function(data: dict[str, Sequence[LoadedSource]], seed: int) -> Decode:
    """Return how a request is read and decoded.

    Args:
        data: Sources by the data's name; only "train" draws where clips start.
        seed: Of the data.
    """

    def decode(request: Request) -> Sample:
        slot, opened = request.slot, data[request.data][request.slot.source]
        rng = draw(seed, slot.number, 0) if request.data == "train" else None
        return opened.decoder(opened.source.read(slot.unit, slot.sample), rng)

    return decode


class PlannedStep(NamedTuple):
    """What one process takes in a step.

    Attributes:
        step: Its number in the plan.
        share: The slots of this process.
        others: Slots to look for a dummy batch in, nearest first.
    """

    step: int
    share: list[SampleIndex]
    others: Iterable[SampleIndex]


class _ReadySample:
    """A sample, or its defect, that needs no decoding."""

    def __init__(self, outcome: Sample | SampleError) -> None:
        self.outcome = outcome

    def result(self) -> Sample:
        if isinstance(self.outcome, SampleError):
            raise self.outcome
        return self.outcome

    def release(self) -> None:
        pass


@dataclass
class BatchReader:
    """Reads planned steps.

    Attributes:
        data: Name of the data.
        sources: Its sources.
        decoding: Gives who decodes.
        ledger: Where unusable samples are noted.
        cache: Keeps decoded samples.
        seed: Decides all draws.
        prefetch: Samples that are asked for ahead.
        pin_memory: Whether batches lie where a GPU fetches them faster.
        limits: What the stage can take of a sample; another one is not usable.
    """

    data: str
    sources: Sequence[LoadedSource]
    decoding: Callable[[], Decoding]
    ledger: SkippedSamples
    cache: DecodedCache
    seed: int = 0
    prefetch: int = 0
    pin_memory: bool = False
    limits: SampleLimits = field(default_factory=SampleLimits)
    _usable: SampleIndex | None = None
    _failed_for_good: dict[SampleId, SampleError] = field(default_factory=dict)

    def read(self, steps: Iterable[PlannedStep]) -> Iterator[Batch]:
        """Yield a batch per step.

        Args:
            steps: In order; taken from as far ahead as `prefetch` says.

        Yields:
            What `collate` makes, and "sample_index" (int64, (B,)), "counted" (B, or 0 for a dummy batch), "position" (the number
            of the next step).
        """
        ahead: deque[tuple[PlannedStep, list[Pending]]] = deque()
        remaining = iter(steps)
        try:
            while True:
                while not ahead or sum(len(pendings) for _, pendings in ahead) < self.prefetch:
                    planned = next(remaining, None)
                    if planned is None:
                        break
                    ahead.append((planned, [self._ask(slot) for slot in planned.share]))
                if not ahead:
                    return
                planned, pendings = ahead[0]
                batch = self._batch(planned, pendings)
                ahead.popleft()
                yield batch
        finally:
            for pending in chain.from_iterable(pendings for _, pendings in ahead):
                pending.release()

    def _place(self, slot: SampleIndex) -> SampleId:
        return self.data, slot.source, slot.unit, slot.sample

    def _ask(self, slot: SampleIndex) -> Pending:
        known = self.cache.get(self._place(slot)) or self._failed_for_good.get(self._place(slot))
        return _ReadySample(known) if known is not None else self.decoding().submit(Request(self.data, slot))

    def _batch(self, planned: PlannedStep, pendings: list[Pending]) -> Batch:
        taken: list[tuple[SampleIndex, Item]] = []
        for slot, pending in zip(planned.share, pendings, strict=True):
            self.ledger.count_seen()
            taken += [(slot, item) for item in self._items(slot, pending)]
        counted = len(taken)
        if not taken:
            taken, pendings = self._filler(planned)
        items = [item for _, item in taken]
        batch = self._own(collate(items), items)
        for pending in pendings:
            pending.release()
        slots = torch.tensor([slot.number for slot, _ in taken], dtype=torch.int64)
        return {**batch, "sample_index": slots, "counted": counted, "position": planned.step + 1}

    def _items(self, slot: SampleIndex, pending: Pending) -> list[Item]:
        """Wait for a sample's items; [] if it cannot be used, which the ledger then knows."""
        opened = self.sources[slot.source]
        try:
            sample = pending.result()
            self.cache.add(self._place(slot), sample)
            items = opened.make_items(sample, draw(self.seed, slot.number, 1))
            for item in items:
                check_item(item, self.limits)
        except SampleError as error:
            if error.reason in PERMANENT_ERRORS:
                self._failed_for_good[self._place(slot)] = error
            key, shard = opened.source.key(slot.unit, slot.sample), opened.source.shard_path(slot.unit)
            self.ledger.add(SkippedSample(error.reason, shard, key, error.detail))
            return []
        self._usable = slot
        return items

    def _filler(self, planned: PlannedStep) -> tuple[list[tuple[SampleIndex, Item]], list[Pending]]:
        """Find the nearest usable sample, which keeps this process in step and does not count."""
        near = [self._usable] if self._usable else []
        for slot in chain(near, planned.others):
            pending = self._ask(slot)
            items = self._items(slot, pending)
            if items:
                return [(slot, items[0])], [pending]
            pending.release()
        raise UserError(self.ledger.report(self.ledger.lost, self.ledger.seen))

    def _own(self, batch: Batch, items: list[Item]) -> Batch:
        """Copy what still lies where its samples do: that memory is used again, or belongs to the cache."""
        borrowed = {_storage(value) for item in items for value in item.values() if isinstance(value, Tensor)}
        for name, value in batch.items():
            if isinstance(value, Tensor):
                batch[name] = value.clone() if _storage(value) in borrowed else value
                batch[name] = batch[name].pin_memory() if self.pin_memory else batch[name]
        return batch


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class PlanLoader:
    """Gives batches to Lightning's loops, and tells how long they were waited for.

    Attributes:
        wait_seconds: What the latest batch made the caller wait.
        waited_seconds: What all batches together did.
    """

    def __init__(self, reader: BatchReader, rank: int, world_size: int) -> None:
        self.reader, self.rank, self.world_size = reader, rank, world_size
        self.wait_seconds = 0.0
        self.waited_seconds = 0.0

    def _share(self, slots: list[SampleIndex]) -> list[SampleIndex]:
        return slots[self.rank :: self.world_size]

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds = time.perf_counter() - begin
            self.waited_seconds += self.wait_seconds
            if batch is None:
                return
            yield batch


class TrainLoader(PlanLoader):
    """The training batches from the data's position on: endlessly, or to the end of the epoch.

    Args:
        reader: Reads steps.
        position: Where training stands; asked when the first batch is, and moved on by who uses the batches.
        rank: Of this process.
        world_size: Number of training processes.
        moves: Whether asking for the next batch counts as having used the last one, where nobody else says so.
    """

    def __init__(
        self, reader: BatchReader, position: TrainPosition, rank: int = 0, world_size: int = 1, *, moves: bool = False
    ) -> None:
        super().__init__(reader, rank, world_size)
        self.position, self.moves = position, moves
        self.began_at: int | None = None

    def __len__(self) -> int:
        """Return the steps of an exact epoch."""
        steps = self.position.plan.steps_per_epoch
        if steps is None:
            raise TypeError("an endless order has no length")
        return steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches; nothing is read before the first is asked for."""
        self.began_at = self.position.restored
        for batch in self._timed(self.reader.read(self._steps())):
            yield batch
            if self.moves:
                self.position.used(batch["position"])

    @property
    def began_too_early(self) -> bool:
        """Whether batches were asked for before a checkpoint moved the position."""
        return self.began_at is not None and self.began_at != self.position.restored

    def _steps(self) -> Iterator[PlannedStep]:
        plan, first = self.position.plan, self.position.step
        steps = plan.steps_per_epoch
        last = (first // steps + 1) * steps if steps else None
        for step in self.position.steps_from(first):
            if last is not None and step >= last:
                return
            yield PlannedStep(step, self._share(plan.batch(step)), self._slots_from(step))

    def trial(self) -> Iterator[Batch]:
        """Yield the first batch of each source that has steps of its own, in their order; of mixed sources one.

        Training does not begin with it: the position stays where it is.
        """
        plan = self.position.plan
        wanted = 1 if plan.mixes_samples else len(plan.sources)
        first: dict[int, PlannedStep] = {}
        for planned in self._steps():
            first.setdefault(planned.share[0].source if wanted > 1 else 0, planned)
            if len(first) == wanted:
                break
        yield from self.reader.read([first[source] for source in sorted(first)])

    def _slots_from(self, step: int) -> Iterator[SampleIndex]:
        """Yield slots as many as there are samples, this step's first."""
        plan = self.position.plan
        slots = (slot for later in self.position.steps_from(step) for slot in plan.batch(later))
        return islice(slots, sum(source.size for source in plan.sources))


class EvaluationLoader(PlanLoader):
    """The batches of one pass in order, as many on each rank.

    Args:
        reader: Reads steps.
        batch_size: Samples of a step, all ranks together.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, reader: BatchReader, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(reader, rank, world_size)
        self.batch_size = batch_size
        counts = [
            (source, unit, count)
            for source, opened in enumerate(reader.sources)
            for unit, count in enumerate(opened.source.counts)
        ]
        self._units = [(source, unit) for source, unit, _ in counts]
        self._ends = np.cumsum([count for _, _, count in counts], dtype=np.int64)

    @property
    def size(self) -> int:
        """Sample of the pass."""
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
            slots = [self._slot(number) for number in range(first, min(first + self.batch_size, self.size))]
            others = (self._slot(number % self.size) for number in range(first, first + self.size))
            yield PlannedStep(step, self._share(slots), others)

    def _slot(self, number: int) -> SampleIndex:
        at = int(np.searchsorted(self._ends, number, side="right"))
        source, unit = self._units[at]
        count = self.reader.sources[source].source.counts[unit]
        return SampleIndex(number, source, 0, unit, number - int(self._ends[at]) + count)
