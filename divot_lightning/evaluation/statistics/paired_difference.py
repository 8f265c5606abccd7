"""Compare the scores of two variants by paired differences with t intervals.

Shape letters: S seeds, I items (clips, captions, questions), G groups of items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

Values = NDArray[np.float64]

COVERAGE = 0.95
MIN_SEEDS = 3
"""Fewest seeds for a claim; with two, the t interval is over three times as wide as with three."""
SMALLEST_P = 1e-12
"""Smallest p-value that is returned; smaller ones become this one."""


@dataclass(frozen=True)
class Difference:
    """How far a variant is from the baseline.

    Attributes:
        mean: Variant minus baseline, over the pairs.
        low: Lower end of the 95% interval; NaN if nothing varies, so that there is no interval.
        high: Upper end.
        pairs: What the interval is computed over: "items", "seeds", "items and seeds", or "nothing".
        p: Two-sided p-value of no difference; NaN with fewer than `MIN_SEEDS` seeds or without an interval.
    """

    mean: float
    low: float
    high: float
    pairs: str
    p: float = math.nan


@dataclass(frozen=True)
class _Part:
    """A part of the squared half width: a squared standard error and the degrees of freedom it is known with."""

    variance: float
    freedom: float


def paired_difference(variant_SI: Values, baseline_SI: Values) -> Difference:
    """Compare a variant with the baseline on the same seeds and the same items.

    Over seeds the interval is the t interval of the seeds' mean differences. Items that differ alike with every seed
    do not show in these, so that their variance (two-way analysis of variance without replication: mean squares of
    items minus those of the residual) is added: `half^2 = t(S-1)^2 MS_S / SI + t(I-1)^2 max(MS_I - MS_E, 0) / SI`.
    With one seed it is the t interval over items, which says nothing about training again. Seeds that all have the
    same values (because they share one measurement) count as one.

    Args:
        variant_SI: One value per seed and item; I is 1 for a score that has no items, such as a Frechet distance.
        baseline_SI: The same of the baseline.

    Returns:
        Mean, interval and p-value.

    >>> variant = np.array([[0.5], [0.7], [0.9]])
    >>> found = paired_difference(variant, np.full((3, 1), 0.6))
    >>> f"{found.mean:.2f} from {found.low:.2f} to {found.high:.2f}, p {found.p:.2f}"  # 0.1 -+ 4.30 * 0.2 / sqrt(3)
    '0.10 from -0.40 to 0.60, p 0.48'
    """
    assert variant_SI.shape == baseline_SI.shape
    difference_SI = variant_SI - baseline_SI
    mean = float(difference_SI.mean())
    if not np.isfinite(difference_SI).all():
        return Difference(mean, math.nan, math.nan, "nothing")
    if (difference_SI == difference_SI[:1]).all():
        difference_SI = difference_SI[:1]
    seeds, items = difference_SI.shape
    parts = [*_seed_part(difference_SI), *_item_part(difference_SI, is_binary(variant_SI, baseline_SI))]
    over = " and ".join(name for name, many in (("items", items > 1), ("seeds", seeds > 1)) if many)
    return _difference(mean, parts, over or "nothing", tested=seeds >= MIN_SEEDS)


def grouped_difference(groups: Sequence[tuple[Values, Values]]) -> Difference:
    """Compare the means of group means of one run with those of another, item by item.

    Args:
        groups: For each group the items' values of the variant and of the baseline, (I,) each.

    Returns:
        The mean over the groups, with Welch's interval; none if a group has one item only.
    """
    differences = [variant_I - baseline_I for variant_I, baseline_I in groups]
    mean = float(np.mean([difference_I.mean() for difference_I in differences]))
    if min(map(len, differences)) < 2:
        return Difference(mean, math.nan, math.nan, "nothing")
    binary = all(is_binary(*pair) for pair in groups)
    parts = [part for difference_I in differences for part in _item_part(difference_I[None], binary)]
    variances = np.array([part.variance for part in parts]) / len(groups) ** 2
    freedoms = np.array([part.freedom for part in parts])
    total = variances.sum()
    # Welch and Satterthwaite: degrees of freedom of a sum of variances that are known with those of its terms.
    freedom = total**2 / (variances**2 / freedoms).sum() if total else math.nan
    return _difference(mean, [_Part(total, freedom)], "items", tested=False)


def is_binary(*values: Values) -> bool:
    """Return whether all values are 0 or 1, as those of items that are right or wrong."""
    return all(np.isin(each, (0.0, 1.0)).all() for each in values)


def _seed_part(difference_SI: Values) -> list[_Part]:
    seeds = len(difference_SI)
    if seeds < 2:
        return []
    return [_Part(float(difference_SI.mean(axis=1).var(ddof=1)) / seeds, seeds - 1)]


def _item_part(difference_SI: Values, binary: bool) -> list[_Part]:
    """Return the part of the mean's variance that comes from items that differ alike with every seed."""
    seeds, items = difference_SI.shape
    if items < 2:
        return []
    mean_I = difference_SI.mean(axis=0)
    variance = float(mean_I.var(ddof=1)) / items
    if seeds > 1:
        residual_SI = difference_SI - mean_I - difference_SI.mean(axis=1, keepdims=True) + difference_SI.mean()
        variance -= float((residual_SI**2).sum()) / ((seeds - 1) * (items - 1)) / (seeds * items)
    # Of N items that are all alike the next one may still differ: N items cannot tell a fraction of 1/N from none.
    return [_Part(max(variance, 1.0 / items**2 if binary else 0.0), items - 1)]


def _difference(mean: float, parts: Sequence[_Part], pairs: str, *, tested: bool) -> Difference:
    half = _half_width(parts, 1.0 - COVERAGE)
    if half == 0.0:
        return Difference(mean, math.nan, math.nan, pairs)
    return Difference(mean, mean - half, mean + half, pairs, _p_value(mean, parts) if tested else math.nan)


def _half_width(parts: Sequence[_Part], error: float) -> float:
    """Return half the width of the interval that misses with a probability of `error`."""
    return math.sqrt(sum(float(stdtrit(part.freedom, error / 2)) ** 2 * part.variance for part in parts))


def _p_value(mean: float, parts: Sequence[_Part]) -> float:
    """Return the error at which the interval just reaches zero."""
    if _half_width(parts, SMALLEST_P) <= abs(mean):
        return SMALLEST_P
    missing = brentq(lambda power: _half_width(parts, 10.0**power) - abs(mean), math.log10(SMALLEST_P), 0.0)
    return float(10.0**missing)
