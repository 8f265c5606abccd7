"""Corrects p-values where a table makes many comparisons."""

import math
from collections.abc import Sequence

LEVEL = 0.05
"""Probability that a table calls any difference clear that is none."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (1979), which holds whatever depends on what.

    Args:
        p_values: Of all comparisons of a table; NaN for what is not tested and does not count.

    Returns:
        Adjusted ones in the same order, at most 1: those below a level hold together at that level.

    >>> [round(p, 3) for p in holm([0.01, 0.04, math.nan, 0.03])]
    [0.03, 0.06, nan, 0.06]
    """
    tested = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, at) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[at] = largest
    return adjusted
