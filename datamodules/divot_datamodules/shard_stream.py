"""The stream of training samples, and the one pass of validation, as iterable datasets for a DataLoader.

The order is decided by the seed, the list of shards and the number of reading processes: a seeded permutation of the
shards in each pass, then a seeded shuffle of undecoded samples.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from divot_datamodules.ledger import Defect, Ledger
from divot_datamodules.samples import Item, Sample, SampleDecoder, SampleError, sample_rng
from divot_datamodules.shard_reading import RawSample, read_samples

T = TypeVar("T")
MakeItems = Callable[[Sample, np.random.Generator], list[Item]]


@dataclass(frozen=True)
class Place:
    """Which part of the data this process reads.

    Attributes:
        rank: Of the training process.
        world_size: Number of training processes.
        worker: Of the loader worker within it.
        workers: Number of loader workers of one training process, at least 1.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def number(self) -> int:
        """This reader among all readers."""
        return self.rank * self.workers + self.worker

    @property
    def readers(self) -> int:
        """Number of readers in all."""
        return self.world_size * self.workers

    @property
    def name(self) -> str:
        """A name that is unique among the readers."""
        return f"rank{self.rank}-worker{self.worker}"


def shuffled(items: Iterable[T], buffer_size: int, rng: np.random.Generator) -> Iterator[T]:
    """Yields all items once, each drawn from a buffer of the next `buffer_size`.

    >>> sorted(shuffled(range(5), 3, np.random.default_rng(0)))
    [0, 1, 2, 3, 4]
    """
    buffer: list[T] = []
    for item in items:
        if len(buffer) < max(1, buffer_size):
            buffer.append(item)
            continue
        place = int(rng.integers(len(buffer)))
        drawn, buffer[place] = buffer[place], item
        yield drawn
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


class SampleCache:
    """Keeps decoded samples of whole shards, as long as they fit, so that later passes need no decoding.

    Only samples without a choice of clip are kept: a random part of a long video is decoded anew in each pass.

    Args:
        max_bytes: Memory for the media.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._kept: dict[str, dict[int, Sample]] = {}
        self._numbers: dict[str, set[int]] = {}
        self._unusable: dict[str, set[int]] = {}

    def add(self, raw: RawSample, sample: Sample) -> None:
        """Keeps a decoded sample if it may be kept and fits."""
        kept = self._kept.setdefault(raw.shard, {})
        if sample.only_choice and raw.number not in kept and sample.num_bytes <= self._left:
            self._left -= sample.num_bytes
            kept[raw.number] = sample

    def note_shard(self, shard: str, numbers: set[int]) -> None:
        """Notes which samples a completely read shard holds."""
        self._numbers[shard] = numbers

    def drop(self, raw: RawSample) -> None:
        """Notes that a sample cannot be used, so that its shard counts as kept without it."""
        self._unusable.setdefault(raw.shard, set()).add(raw.number)

    def get(self, raw: RawSample) -> Sample | None:
        """Returns a kept sample."""
        return self._kept.get(raw.shard, {}).get(raw.number)

    def shard(self, shard: str) -> list[tuple[int, Sample]] | None:
        """Returns the samples of a shard in its order if all of them are kept."""
        if shard not in self._numbers:
            return None
        usable = self._numbers[shard] - self._unusable.get(shard, set())
        kept = self._kept.get(shard, {})
        return [(number, kept[number]) for number in sorted(usable)] if usable <= kept.keys() else None


@dataclass(eq=False)
class ShardStream(IterableDataset[Item]):
    """Decoded items of a set of shards.

    Attributes:
        shards: Paths and URLs.
        decoder: Decodes a sample.
        make_items: Turns a decoded sample into items.
        ledger: Where unusable samples are noted.
        training: True for the endless shuffled stream; False for one pass in order, in which unusable samples are
            None, so that batches stay where they are.
        seed: Decides the order and all draws.
        shuffle_buffer: Undecoded samples that the shuffle draws from.
        batch_size: Of the loader; with it the one pass keeps its order with any number of workers.
        cache_bytes: Memory for decoded samples of one training process.
        allow_pipe: See `divot_datamodules.shard_reading.expand_shards`.
        rank: Of this training process.
        world_size: Number of training processes.
    """

    shards: list[str]
    decoder: SampleDecoder
    make_items: MakeItems
    ledger: Ledger
    training: bool
    seed: int = 0
    shuffle_buffer: int = 1000
    batch_size: int = 1
    cache_bytes: int = 0
    allow_pipe: bool = False
    rank: int = 0
    world_size: int = 1
    _cache: SampleCache | None = field(default=None, repr=False)

    def place(self) -> Place:
        """Returns what this process reads."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return Place(self.rank, self.world_size, worker, workers)

    def __iter__(self) -> Iterator[Item | None]:  # type: ignore[override]
        """Yields items: endlessly in training, else one pass."""
        place = self.place()
        if self._cache is None:
            self._cache = SampleCache(self.cache_bytes // place.workers)
        return self._train(place) if self.training else self._validate(place)

    def _train(self, place: Place) -> Iterator[Item]:
        share = self.shards[place.number :: place.readers]
        for pass_number in count():
            rng = np.random.default_rng([self.seed, pass_number, place.number])
            order = [share[at] for at in rng.permutation(len(share))]
            bad = seen = 0
            for raw, sample in shuffled(self._samples(order, place), self.shuffle_buffer, rng):
                items = self._items(raw, sample, place, pass_number)
                seen += 1
                bad += not items
                yield from items
            self.ledger.finish_pass(bad, seen)

    def _validate(self, place: Place) -> Iterator[Item | None]:
        bad = seen = 0
        for number, (raw, sample) in enumerate(self._samples(self.shards, place)):
            if number % place.world_size != place.rank:
                continue
            # The loader takes one batch from each worker in turn.
            if (number // place.world_size // self.batch_size) % place.workers != place.worker:
                continue
            items = self._items(raw, sample, place, 0)
            seen += 1
            bad += not items
            if items:
                yield from items
            else:
                yield None
        if seen:
            self.ledger.finish_pass(bad, seen)

    def _samples(self, shards: list[str], place: Place) -> Iterator[tuple[RawSample, Sample | None]]:
        """Yields the shards' samples, decoded ones where they are kept from a former pass."""
        assert self._cache is not None
        for shard in shards:
            kept = self._cache.shard(shard)
            if kept is not None:
                yield from ((RawSample(sample.key, shard, number), sample) for number, sample in kept)
                continue
            numbers: set[int] = set()
            note = partial(self.ledger.record, writer=place.name)
            for raw in read_samples(shard, note, allow_pipe=self.allow_pipe):
                numbers.add(raw.number)
                yield raw, self._cache.get(raw)
            self._cache.note_shard(shard, numbers)

    def _items(self, raw: RawSample, sample: Sample | None, place: Place, pass_number: int) -> list[Item]:
        """Decodes if need be; [] if the sample is unusable, which the ledger then knows."""
        assert self._cache is not None
        rng = sample_rng(self.seed, pass_number, raw.key)
        self.ledger.saw_sample()
        try:
            if sample is None:
                sample = self.decoder(raw, rng if self.training else None)
                self._cache.add(raw, sample)
            return self.make_items(sample, rng)
        except SampleError as error:
            self._cache.drop(raw)
            self.ledger.record(Defect(error.reason, raw.shard, raw.key, error.detail), place.name)
            return []
