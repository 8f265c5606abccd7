"""Correct p-values for the number of comparisons in a table."""

import math
from collections.abc import Sequence

LEVEL = 0.05
"""Probability that a table calls at least one difference clear that does not exist."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (1979), which holds even if the comparisons depend on each other.

    Args:
        p_values: Of all comparisons of a table; NaN for a comparison that is not tested, which does not count.

    Returns:
        Adjusted p-values in the same order, at most 1. All below a level are significant together at that level.

    >>> [round(p, 3) for p in holm([0.01, 0.04, math.nan, 0.03])]
    [0.03, 0.06, nan, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted
