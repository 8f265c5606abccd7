"""From planned steps to batches: request samples ahead, take them in order, skip those that cannot be used.

The batch of a step is the same for every number of workers, and for every number of ranks if their parts are joined:
random choices for a sample depend only on the seed and on the sample's number in the order.

Shape letters: B batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
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
from divot_datamodules.loading.decode_pool import Decoding, LazySample, Pending
from divot_datamodules.loading.decode_worker import Decode, Request
from divot_datamodules.loading.decoded_cache import DecodedCache, SampleId
from divot_datamodules.loading.skipped_samples import SkippedSamples
from divot_datamodules.order.source_order import SampleIndex
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
    data: Mapping[str, Sequence[LoadedSource]], seed: int, collator: SequenceCollator | None = None
) -> Decode:
    """Return the function that reads, decodes and lays out the sample of a request.

    Args:
        data: Sources by the name of their split; only in "train" clips start at a random time.
        seed: Seed of the data.
        collator: Lays out texts; None for stages without a language model to train.
    """
    # Reads the text tokenizer, before workers are forked.
    limits = collator.limits if collator is not None else SampleLimits()

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
    _last_good: SampleIndex | None = None
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
        self._last_good = index
        if self.collator is None:
            return items
        sequences = sample.sequences or laid_out(items, with_max_length(self.collator, opened.max_length))
        return [{**item, "sequence": sequence} for item, sequence in zip(items, sequences, strict=True)]

    def _dummy_batch(self, planned: PlannedStep) -> tuple[list[tuple[SampleIndex, Item]], list[Pending]]:
        """Find the nearest usable sample, for a batch that does not count but keeps this rank in sync with the others.

        Raises:
            UserError: No sample is usable.
        """
        near = [self._last_good] if self._last_good else []
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
