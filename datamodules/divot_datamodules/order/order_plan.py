"""The order of training samples as a pure function of the recipe: which samples step n takes, for every n.

Nothing here depends on ranks, workers or what was read before. Every process can compute every step, so a step takes
the same samples with any number of processes and workers, and a run is resumed by arithmetic.

`SourceOrder` orders the samples of one source; the plan distributes the turns of the sources over steps.
"""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from divot_datamodules.order.source_order import SampleIndex, SourceOrder
from divot_lightning.errors import UserError


def weighted_round_robin(number: int, weights: tuple[float, ...]) -> tuple[int, tuple[int, ...]]:
    """Return which source has turn n if turns are distributed by weight, as evenly as possible.

    The first source takes its fraction of all turns (Bresenham's line), the second its fraction of the remaining turns,
    and so on. The turns of a source never differ from its fraction by more than the number of sources.

    Args:
        number: n, at least 0.
        weights: Greater than 0.

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
        taken = left if last else math.floor(left * (weight / total) + 0.5)
        takes_this = last or math.floor((left + 1) * (weight / total) + 0.5) > taken
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
