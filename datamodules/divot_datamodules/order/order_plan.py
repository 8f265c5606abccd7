"""The order of training samples as a pure function of the recipe: which samples step n takes, for every n.

Nothing here depends on ranks, workers or what was read before. Every process can compute every step, so a step takes
the same samples with any number of processes and workers, and a run is resumed by arithmetic.

A source is read in pass after pass. In each pass its shards are permuted and joined into one sequence. A fixed number
of streams read this sequence side by side, each its own contiguous part. The next samples of all streams together form
a window, which is shuffled. Only indices are shuffled, before anything is read, so the window costs no memory.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

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


def weighted_round_robin(number: int, weights: tuple[float, ...], phase: float = 0.5) -> tuple[int, tuple[int, ...]]:
    """Return which source has turn n if turns are distributed by weight, as evenly as possible.

    The first source takes its fraction of all turns (Bresenham's line), the second its fraction of the remaining turns,
    and so on. The turns of a source never differ from its fraction by more than the number of sources.

    Args:
        number: n, at least 0.
        weights: Greater than 0.
        phase: In [0, 1); shifts the turns of each source.

    Returns:
        The source that has the turn, and the number of turns that each source had before.

    >>> [weighted_round_robin(n, (2.0, 1.0))[0] for n in range(6)]
    [0, 1, 0, 0, 1, 0]
    >>> weighted_round_robin(6, (2.0, 1.0))[1]
    (4, 2)
    """
    remaining = [*accumulate(reversed(weights))][::-1]
    turn, before, left, mine = -1, [], number, True
    for source, (weight, total) in enumerate(zip(weights, remaining, strict=True)):
        last = source == len(weights) - 1
        taken = left if last else math.floor(left * (weight / total) + phase)
        takes_this = last or math.floor((left + 1) * (weight / total) + phase) > taken
        if mine and takes_this:
            turn, mine = source, False
        before.append(taken)
        left -= taken
    return turn, tuple(before)


@dataclass(frozen=True)
class Origin:
    """The step from which a plan counts with its batch sizes; a run resumed with other batch sizes has a new origin.

    Attributes:
        step: The first step.
        samples: Samples of each source that the earlier steps took; () for none.
    """

    step: int = 0
    samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class OrderPlan:
    """The samples that each training step takes, in all processes together.

    Attributes:
        sources: The sources.
        batch_sizes: One number: every step mixes samples of all sources by weight. One for each source: every step
            takes one source, and the weights are fractions of the steps.
        weights: Greater than 0; () for one source.
        exact: No step crosses the end of a pass: the last step of a pass takes the remaining samples. For one source.
        origin: The step from which the batch sizes count.
    """

    sources: tuple[SourceOrder, ...]
    batch_sizes: tuple[int, ...]
    weights: tuple[float, ...] = ()
    exact: bool = False
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.sources))
        for weight in self.weights:
            if not 0 < weight < math.inf:
                raise UserError(
                    f"a source has the weight {weight}; it must be greater than 0 (or leave the source out)."
                )
        for size in self.batch_sizes:
            if size < 1:
                raise UserError(f"a batch size is {size}; it must be at least 1.")
        if self.exact and len(self.sources) > 1:
            raise UserError(
                f"{len(self.sources)} sources are mixed by weight, so no epoch covers each exactly once.\n"
                "Set epoch to endless, or train on one source."
            )
        assert len(self.weights) == len(self.sources)
        assert len(self.batch_sizes) in (1, len(self.sources))
        assert not (self.exact and self.origin.step), "an exact epoch begins at step 0"

    @property
    def mixes_samples(self) -> bool:
        """Whether a step takes samples of all sources."""
        return len(self.batch_sizes) == 1

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one pass if passes are exact, else None."""
        return -(-self.sources[0].size // self.batch_sizes[0]) if self.exact else None

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> list[SampleIndex]:
        """Return the samples of a step that a process takes, in order; the others are not computed.

        Args:
            step: Not before the plan's origin.
            rank: The process: it takes `[rank::world_size]` of the step.
            world_size: Number of processes; 1 for the whole step.
        """
        before = self.samples_before(step)
        first, end = sum(before), self._end(step, before)
        numbers = range(first, end)[rank::world_size]
        if self.mixes_samples and not self.exact:
            return [self._mixed_index(number) for number in numbers]
        source = 0 if self.exact else weighted_round_robin(step, self.weights)[0]
        return [self._sample_index(number, source, before[source] + number - first) for number in numbers]

    def _end(self, step: int, before: tuple[int, ...]) -> int:
        """Return the number behind the last one of a step."""
        if self.exact:
            size = self.sources[0].size
            return min(before[0] + self.batch_sizes[0], (before[0] // size + 1) * size)
        source = 0 if self.mixes_samples else weighted_round_robin(step, self.weights)[0]
        return sum(before) + self.batch_sizes[source]

    def samples_before(self, step: int) -> tuple[int, ...]:
        """Return how many samples of each source the steps before this one took."""
        assert step >= self.origin.step, f"step {step} lies before the plan's origin {self.origin.step}"
        if self.exact:
            epoch, rest = divmod(step, self.steps_per_epoch or 1)
            return (epoch * self.sources[0].size + rest * self.batch_sizes[0],)
        taken = self.origin.samples or (0,) * len(self.sources)
        if self.mixes_samples:
            number = sum(taken) + (step - self.origin.step) * self.batch_sizes[0]
            return weighted_round_robin(number, self.weights)[1]
        now, then = weighted_round_robin(step, self.weights)[1], weighted_round_robin(self.origin.step, self.weights)[1]
        counts = zip(taken, now, then, self.batch_sizes, strict=True)
        return tuple(samples + (steps - earlier) * size for samples, steps, earlier, size in counts)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the order, except batch sizes, as JSON types; a resumed run compares them."""
        orders = [
            {"units": len(s.counts), "samples": s.size, "seed": s.seed, "streams": s.streams, "shuffle": s.shuffle}
            for s in self.sources
        ]
        return {
            "sources": orders,
            "weights": list(self.weights),
            "exact": self.exact,
            "mixes_samples": self.mixes_samples,
        }

    def _mixed_index(self, number: int) -> SampleIndex:
        source, before = weighted_round_robin(number, self.weights)
        return self._sample_index(number, source, before[source])

    def _sample_index(self, number: int, source: int, index: int) -> SampleIndex:
        return SampleIndex(number, source, *self.sources[source].locate(index))
