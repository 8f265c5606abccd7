"""Power of a paired t-test over seeds: which difference how many seeds show."""

import math

from scipy.optimize import brentq
from scipy.special import nctdtr, stdtrit

LEVEL = 0.05
"""Probability that the test sees a difference that does not exist; that of one comparison, chosen beforehand."""
POWER = 0.8
"""Probability to see a difference that exists; the usual choice (Cohen, 1988)."""


def power(difference: float, deviation: float, seeds: int) -> float:
    """Return the probability that a two-sided paired t-test at `LEVEL` sees a difference.

    With S seeds, the statistic has the noncentral t distribution with S - 1 degrees of freedom and noncentrality
    ``difference sqrt(S) / deviation``; the test sees it where it lies beyond the quantiles of the central one.

    Args:
        difference: True mean of the paired differences.
        deviation: Standard deviation of one seed's paired difference, above 0.
        seeds: Number of seeds S, at least 2.

    >>> round(power(0.5, 1.0, 34), 2), round(power(0.0, 1.0, 5), 2)
    (0.81, 0.05)
    """
    freedom, shift = seeds - 1, abs(difference) * math.sqrt(seeds) / deviation
    edge = -float(stdtrit(freedom, LEVEL / 2))
    return 1.0 - _below(edge, freedom, shift) + _below(-edge, freedom, shift)


def _below(value: float, freedom: int, shift: float) -> float:
    """Return the distribution function of the noncentral t; scipy's is NaN at some values where it is nearly 0."""
    probability = float(nctdtr(freedom, shift, value))
    return 0.0 if math.isnan(probability) else probability


def smallest_difference(deviation: float, seeds: int) -> float:
    """Return the smallest difference that is seen with a probability of `POWER`; arguments as in `power`.

    >>> round(smallest_difference(0.1, 3), 2), round(smallest_difference(0.1, 10), 2)
    (0.33, 0.1)
    """
    edge = -float(stdtrit(seeds - 1, LEVEL / 2))
    # At this many deviations of the mean, even two seeds are above the wanted power.
    top = 4.0 * edge
    effect = brentq(lambda shift: power(shift / math.sqrt(seeds), 1.0, seeds) - POWER, 0.0, top)
    return float(effect) / math.sqrt(seeds) * deviation
