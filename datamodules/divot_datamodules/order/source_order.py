"""The endless order of one source's samples, as a pure function of its settings.

A source is read in pass after pass. In each pass its shards are permuted and joined into one sequence. A fixed number
of streams read this sequence side by side, each its own contiguous part. The next samples of all streams together form
a window, which is shuffled. Only indices are shuffled, before anything is read, so the window costs no memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from divot_lightning.errors import UserError

Indices = NDArray[np.int64]


class SampleIndex(NamedTuple):
    """One entry of the order: which sample it is, and its number in the order.

    Attributes:
        number: Counts the entries of the whole training. It is never used twice, so it seeds the random choices that
            are made for this entry.
        source: Index of the source.
        pass_number: Number of the source's passes before this one.
        shard: Index among the source's shards; a jsonl file counts as one.
        sample: Index among the shard's samples.
    """

    number: int
    source: int
    pass_number: int
    shard: int
    sample: int


@dataclass(frozen=True)
class SourceOrder:
    """The endless order of one source's samples; each pass holds every sample once.

    Attributes:
        counts: Samples of each shard; at least one sample in all.
        seed: Decides the order.
        streams: Logical streams that read side by side, at least 1; more mix better, fewer read more in sequence.
        shuffle: Samples in the window that is shuffled, at least 1.
    """

    counts: tuple[int, ...]
    seed: int = 0
    streams: int = 64
    shuffle: int = 1000

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise UserError(f"streams is {self.streams}; it must be at least 1.")
        if self.shuffle < 1:
            raise UserError(f"the shuffle window is {self.shuffle} samples; it must be at least 1 (1: no shuffle).")
        assert min(self.counts, default=0) >= 0
        if self.size == 0:
            raise UserError(f"a source of {len(self.counts)} shards holds no samples; it needs at least one.")

    @cached_property
    def size(self) -> int:
        """Samples of one pass."""
        return sum(self.counts)

    @cached_property
    def _passes(self) -> dict[int, tuple[Indices, Indices]]:
        return {}

    @cached_property
    def _windows(self) -> dict[tuple[int, int], Indices]:
        """The latest windows, since a step crosses at most a few."""
        return {}

    def _pass_order(self, pass_number: int) -> tuple[Indices, Indices]:
        """Return the permuted shards, and for each the index behind its last sample in the joined sequence."""
        if pass_number not in self._passes:
            while len(self._passes) > 2:
                del self._passes[next(iter(self._passes))]
            shards = np.random.default_rng([self.seed, pass_number]).permutation(len(self.counts))
            self._passes[pass_number] = shards, np.cumsum(np.array(self.counts, dtype=np.int64)[shards])
        return self._passes[pass_number]

    def locate(self, index: int) -> tuple[int, int, int]:
        """Find the sample at one index of the order.

        Args:
            index: At least 0; 0 is the first sample of the first pass.

        Returns:
            Pass number, shard and sample; see `SampleIndex`.

        >>> order = SourceOrder(counts=(3, 2), streams=2)
        >>> sorted(order.locate(index)[1:] for index in range(5))
        [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        """
        pass_number, offset = divmod(index, self.size)
        shards, ends = self._pass_order(pass_number)
        position = self._stream_position(self._shuffled(offset, pass_number))
        at = int(np.searchsorted(ends, position, side="right"))
        shard = int(shards[at])
        return pass_number, shard, position - int(ends[at]) + self.counts[shard]

    def _shuffled(self, index: int, pass_number: int) -> int:
        """Shuffle within windows: return the index, within the pass, that takes the turn of `index`."""
        window, offset = divmod(index, self.shuffle)
        first = window * self.shuffle
        order = self._windows.get((pass_number, window))
        if order is None:
            while len(self._windows) > 3:
                del self._windows[next(iter(self._windows))]
            size = min(self.shuffle, self.size - first)
            order = np.random.default_rng([self.seed, pass_number, window]).permutation(size)
            self._windows[pass_number, window] = order
        return first + int(order[offset])

    def _stream_position(self, index: int) -> int:
        """Return the position in the joined sequence of the shards.

        The streams take turns: index i belongs to stream i mod n, which reads its contiguous part of the sequence. If
        the parts cannot be equal, the first `longer` streams have one sample more.
        """
        streams = min(self.streams, self.size)
        length, longer = divmod(self.size, streams)
        row, stream = divmod(index, streams)
        return stream * length + min(stream, longer) + row
