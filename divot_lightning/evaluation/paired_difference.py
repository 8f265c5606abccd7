"""What the scores of two variants say about each other: paired differences with bootstrap intervals.

Shape letters: S seeds, I items (clips, captions, questions), R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

NUM_RESAMPLES = 10_000
COVERAGE = 0.95
MAX_DRAWS = 10_000_000
"""Numbers drawn at a time, which bounds memory."""
MIN_SEEDS = 3
"""Fewest seeds whose resampling says anything by itself: of two seeds there are only three different resamples."""


@dataclass(frozen=True)
class Difference:
    """How far a variant is from the baseline.

    Attributes:
        mean: Variant minus baseline, over the pairs.
        low: Lower end of the bootstrap interval; NaN where there is too little to resample.
        high: Upper end.
        pairs: What was paired: "items", "seeds", or "items and seeds".
    """

    mean: float
    low: float
    high: float
    pairs: str

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_difference(variant_SI: Values, baseline_SI: Values, seed: int = 0) -> Difference:
    """Compares a variant with the baseline on the same seeds and the same items.

    Seeds and items are both drawn with replacement, each the same for variant and baseline, so that the interval holds
    the variation of training (as far as there are seeds) and that of the evaluation set. With less than `MIN_SEEDS`
    seeds the seeds at hand are taken as they are.

    Args:
        variant_SI: One value per seed and item; I is 1 for a score that has no items, such as a Frechet distance.
        baseline_SI: The same of the baseline.
        seed: Of the resampling.

    Returns:
        Mean and percentile interval.

    >>> better, worse = np.ones((4, 64)), np.zeros((4, 64))
    >>> paired_difference(better, worse)
    Difference(mean=1.0, low=1.0, high=1.0, pairs='items and seeds')
    """
    assert variant_SI.shape == baseline_SI.shape
    difference_SI = variant_SI - baseline_SI
    seeds, items = difference_SI.shape
    over = [name for name, many in (("items", items > 1), ("seeds", seeds >= MIN_SEEDS)) if many]
    mean = float(difference_SI.mean())
    if not over or not np.isfinite(difference_SI).all():
        return Difference(mean, math.nan, math.nan, " and ".join(over) or "nothing")
    means_R = _resampled_means(difference_SI, np.random.default_rng(seed), over)
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(means_R, [tail, 100 - tail])
    return Difference(mean, float(low), float(high), " and ".join(over))


def _resampled_means(difference_SI: Values, rng: np.random.Generator, over: Sequence[str]) -> Values:
    """Draws how often each seed and item is taken, rather than which: a mean is then a product of matrices."""
    seeds, items = difference_SI.shape
    # Benchmarks have ten thousand items and more: the draws of all resamples together would take gigabytes.
    step = max(1, MAX_DRAWS // (seeds + items))
    parts = []
    for start in range(0, NUM_RESAMPLES, step):
        count = min(step, NUM_RESAMPLES - start)
        weights_RS = _weights(rng, seeds, count, "seeds" in over)
        weights_RI = _weights(rng, items, count, "items" in over)
        parts.append(np.einsum("rs,si,ri->r", weights_RS, difference_SI, weights_RI, optimize=True))
    means: Values = np.concatenate(parts)
    return means


def _weights(rng: np.random.Generator, size: int, count: int, resample: bool) -> Values:
    even = np.full(size, 1 / size)
    return rng.multinomial(size, even, count) / size if resample else np.tile(even, (count, 1))
