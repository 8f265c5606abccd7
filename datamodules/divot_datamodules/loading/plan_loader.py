"""From the order plan to batches: request samples ahead, take them in order, skip those that cannot be used.

The batch of a step is the same for every number of workers, and for every number of ranks if their parts are joined:
random choices for a sample depend only on the seed and on the sample's number in the order.

Shape letters: B batch.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.samples import Item, Sample, SampleDecoder
from divot_datamodules.loading.collate import (
    MakeItems,
    checked_items,
    collate,
    laid_out,
    lay_out_ahead,
    with_max_length,
)
from divot_datamodules.loading.decode_pool import Decode, Decoding, LazySample, Pending, Request
from divot_datamodules.loading.decoded_cache import DecodedCache, SampleId
from divot_datamodules.loading.skipped_samples import SkippedSamples
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.order_plan import SampleIndex
from divot_lightning.errors import UserError
from divot_lightning.parts.batch import Batch
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.parts.sequences.limits import SampleLimits
from divot_lightning.parts.sources import SampleError, SkippedSample, Source

PERMANENT_ERRORS = ("deadline", "worker_died")
"""Reasons for which a sample is not tried again in the next pass, since each try costs too much time."""


@dataclass(frozen=True)
class LoadedSource:
    """A source with the functions that turn its bytes into items of a batch.

    Attributes:
        source: Reads the bytes of a sample.
        decoder: Decodes a sample.
        make_items: Turns a decoded sample into items of a batch; the generator makes the random choices.
        max_length: Longest token sequence of its samples; None for the stage's.
    """

    source: Source
    decoder: SampleDecoder
    make_items: MakeItems
    max_length: int | None = None


def sample_rng(seed: int, sample_index: int, purpose: int) -> np.random.Generator:
    """Return the generator for the random choices of one sample.

    Args:
        seed: Seed of the data.
        sample_index: Number of the sample in the order.
        purpose: 0 for decoding, 1 for tasks. They have separate generators, so that the task is the same whether the
            decoded sample comes from the cache or not.
    """
    return np.random.default_rng([seed, sample_index, purpose])


def decode_function(
    data: dict[str, Sequence[LoadedSource]], seed: int, collator: SequenceCollator | None = None
) -> Decode:
    """Return the function that reads, decodes and lays out the sample of a request.

    Args:
        data: Sources by the name of their split; only in "train" clips start at a random time.
        seed: Seed of the data.
        collator: Lays out texts; None for stages without a language model to train.
    """
    limits = (
        collator.limits if collator is not None else SampleLimits()
    )  # reads the tokenizer, before workers are forked

    def decode(request: Request) -> Sample:
        index, opened = request.sample, data[request.data][request.sample.source]
        rng = sample_rng(seed, index.number, 0) if request.data == "train" else None
        sample = opened.decoder(opened.source.read(index.shard, index.sample), rng)
        if collator is not None:
            task_rng = sample_rng(seed, index.number, 1)
            own = with_max_length(limits, opened.max_length), with_max_length(collator, opened.max_length)
            sample.sequences = lay_out_ahead(sample, opened.make_items, task_rng, *own)
        return sample

    return decode


class PlannedStep(NamedTuple):
    """The samples that one process takes in a step.

    Attributes:
        step: Number of the step in the plan.
        indices: The samples of this process.
        others: Samples to try for a dummy batch, nearest first.
    """

    step: int
    indices: list[SampleIndex]
    others: Iterable[SampleIndex]


def _known_outcome(outcome: Sample | SampleError, request: Request) -> Sample:
    """Stand for decoding where the result is known: the sample is in the cache, or cannot be used."""
    if isinstance(outcome, SampleError):
        raise outcome
    return outcome


@dataclass
class BatchReader:
    """Reads planned steps.

    Attributes:
        data: Name of the split.
        sources: Its sources.
        decoding: Returns the decoder, which is started at the first call.
        skipped: The log of samples that cannot be used.
        cache: Keeps decoded samples.
        seed: Decides all random choices.
        prefetch: Number of samples that are requested ahead.
        pin_memory: Whether batches are in pinned memory, from which a GPU copies faster.
        collator: Lays out texts; None for stages without a language model to train.
        limits: The samples that the stage accepts, by the collator; others are skipped.
    """

    data: str
    sources: Sequence[LoadedSource]
    decoding: Callable[[], Decoding]
    skipped: SkippedSamples
    cache: DecodedCache
    seed: int = 0
    prefetch: int = 0
    pin_memory: bool = False
    collator: SequenceCollator | None = None
    limits: SampleLimits = field(init=False)
    _last_usable: SampleIndex | None = None
    _failed_for_good: dict[SampleId, SampleError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.limits = self.collator.limits if self.collator is not None else SampleLimits()

    def read(self, steps: Iterable[PlannedStep]) -> Iterator[Batch]:
        """Yield a batch per step.

        Args:
            steps: The steps in order; taken from the iterable as far ahead as `prefetch` requires.

        Yields:
            The batch of a step; see `divot_lightning.parts.batch.Batch`.
        """
        ahead: deque[tuple[PlannedStep, list[Pending]]] = deque()
        remaining = iter(steps)
        try:
            while True:
                while not ahead or sum(len(pendings) for _, pendings in ahead) < self.prefetch:
                    planned = next(remaining, None)
                    if planned is None:
                        break
                    ahead.append((planned, [self._request(index) for index in planned.indices]))
                if not ahead:
                    return
                planned, pendings = ahead[0]
                batch = self._batch(planned, pendings)
                ahead.popleft()
                yield batch
        finally:
            for pending in chain.from_iterable(pendings for _, pendings in ahead):
                pending.release()

    def _sample_id(self, index: SampleIndex) -> SampleId:
        return self.data, index.source, index.shard, index.sample

    def _request(self, index: SampleIndex) -> Pending:
        sample_id = self._sample_id(index)
        known = self.cache.get(sample_id) or self._failed_for_good.get(sample_id)
        request = Request(self.data, index)
        return LazySample(partial(_known_outcome, known), request) if known else self.decoding().submit(request)

    def _batch(self, planned: PlannedStep, pendings: list[Pending]) -> Batch:
        taken: list[tuple[SampleIndex, Item]] = []
        for index, pending in zip(planned.indices, pendings, strict=True):
            self.skipped.count_seen()
            taken += [(index, item) for item in self._items(index, pending)]
        counted = len(taken)
        if not taken:
            taken, pendings = self._dummy_batch(planned)
        items = [item for _, item in taken]
        batch = self._copied(collate(items, self.collator), items)
        for pending in pendings:
            pending.release()
        numbers = torch.tensor([index.number for index, _ in taken], dtype=torch.int64)
        return cast(Batch, {**batch, "sample_index": numbers, "counted": counted, "position": planned.step + 1})

    def _items(self, index: SampleIndex, pending: Pending) -> list[Item]:
        """Wait for a sample's items. If it cannot be used, return [] and add it to the skipped samples."""
        opened = self.sources[index.source]
        try:
            sample = pending.result()
            self.cache.add(self._sample_id(index), sample)
            limits = with_max_length(self.limits, opened.max_length)
            items = checked_items(sample, opened.make_items, sample_rng(self.seed, index.number, 1), limits)
        except SampleError as error:
            if error.reason in PERMANENT_ERRORS:
                self._failed_for_good[self._sample_id(index)] = error
            key, path = opened.source.key(index.shard, index.sample), opened.source.shard_path(index.shard)
            self.skipped.add(SkippedSample(error.reason, path, key, error.detail))
            return []
        self._last_usable = index
        if self.collator is None:
            return items
        sequences = sample.sequences or laid_out(items, with_max_length(self.collator, opened.max_length))
        return [{**item, "sequence": sequence} for item, sequence in zip(items, sequences, strict=True)]

    def _dummy_batch(self, planned: PlannedStep) -> tuple[list[tuple[SampleIndex, Item]], list[Pending]]:
        """Find the nearest usable sample, for a batch that does not count but keeps this rank in sync with the others.

        Raises:
            UserError: No sample is usable.
        """
        near = [self._last_usable] if self._last_usable else []
        for index in chain(near, planned.others):
            pending = self._request(index)
            items = self._items(index, pending)
            if items:
                return [(index, items[0])], [pending]
            pending.release()
        raise UserError(self.skipped.report(self.skipped.num_skipped, self.skipped.seen))

    def _copied(self, batch: dict[str, Any], items: list[Item]) -> dict[str, Any]:
        """Copy tensors that share memory with a sample: a buffer slot is used again, and the cache keeps its tensors.

        A batch of one sample shares its memory; `collate` has copied the others already.
        """
        borrowed = {_storage(value) for item in items for value in item.values() if isinstance(value, Tensor)}
        for name, value in batch.items():
            if isinstance(value, Tensor):
                batch[name] = value.clone() if _storage(value) in borrowed else value
                batch[name] = batch[name].pin_memory() if self.pin_memory else batch[name]
        return batch


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class PlanLoader:
    """The loader of batches for Lightning's loops; it measures how long the loops wait for them.

    Attributes:
        wait_seconds: Time that the caller waited for the latest batch.
        waited_seconds: Time that the caller waited for all batches together.
    """

    def __init__(self, reader: BatchReader, rank: int, world_size: int) -> None:
        self.reader, self.rank, self.world_size = reader, rank, world_size
        self.wait_seconds = 0.0
        self.waited_seconds = 0.0

    def _of_this_rank(self, indices: list[SampleIndex]) -> list[SampleIndex]:
        return indices[self.rank :: self.world_size]

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
            yield PlannedStep(step, self._of_this_rank(plan.batch(step)), self._indices_from(step))

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
            indices = [self._index(number) for number in range(first, min(first + self.batch_size, self.size))]
            others = (self._index(number % self.size) for number in range(first, first + self.size))
            yield PlannedStep(step, self._of_this_rank(indices), others)

    def _index(self, number: int) -> SampleIndex:
        at = int(np.searchsorted(self._ends, number, side="right"))
        source, shard = self._shards[at]
        count = self.reader.sources[source].source.counts[shard]
        return SampleIndex(number, source, 0, shard, number - int(self._ends[at]) + count)
