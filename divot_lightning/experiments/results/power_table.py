"""Say which differences an experiment can see, and how many seeds smaller ones would need. No torch in here."""

import math
from collections.abc import Mapping, Sequence

from divot_lightning.evaluation.statistics.power import LEVEL, POWER, smallest_difference
from divot_lightning.experiments.report.content import Table
from divot_lightning.experiments.report.numbers import number
from divot_lightning.experiments.results.comparisons import DECIMALS
from divot_lightning.experiments.results.directions import Better, compared
from divot_lightning.experiments.results.trials import TrialResult, paired_trials

SEEDS = (3, 5, 8, 12, 20)


def power_table(
    scores: Mapping[str, Better], groups: Mapping[str, Sequence[TrialResult]], baseline: str, labels: Mapping[str, str]
) -> Table | None:
    """Return the smallest difference from the baseline that 3 to 20 seeds see, a row per score.

    Args:
        scores: Which values are better, by score.
        groups: Results of all seeds by combination of variants.
        baseline: Name of the group that the others are compared with.
        labels: Names of the scores in the recipe.

    Returns:
        The table; None if no score has two seeds of two groups that differ.
    """
    rows = []
    for name, better in scores.items():
        deviation, freedom = seed_deviation(name, better, groups, baseline)
        if deviation > 0:
            seen = [number(smallest_difference(deviation, seeds), DECIMALS) for seeds in SEEDS]
            rows.append([labels[name], number(deviation, DECIMALS), str(freedom), *seen])
    if not rows:
        return None
    note = (
        f"The smallest difference from {baseline} that so many seeds see with a probability of {POWER:.0%}, by a "
        f"two-sided paired t-test at {LEVEL:g} for one comparison that is named beforehand (noncentral t distribution)."
        " Deviation: of one seed's difference, pooled over the variants; with few degrees of freedom it is uncertain."
    )
    columns = ["", "deviation", "degrees of freedom", *(f"{seeds} seeds" for seeds in SEEDS)]
    return Table("Power: which differences can be seen", columns, rows, note)


def seed_deviation(
    score: str, better: Better, groups: Mapping[str, Sequence[TrialResult]], baseline: str
) -> tuple[float, int]:
    """Return the standard deviation of a seed's difference from the baseline, pooled, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for group, trials in groups.items():
        pair = None if group == baseline else paired_trials(score, trials, groups[baseline], items=False)
        if pair is None:
            continue
        difference_S = (compared(better, pair[0]) - compared(better, pair[1])).ravel()
        if len(difference_S) > 1 and all(map(math.isfinite, difference_S)):
            squares += float(difference_S.var(ddof=1)) * (len(difference_S) - 1)
            freedom += len(difference_S) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)
