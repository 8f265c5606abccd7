"""Compare the variants of an experiment: paired differences, p-values corrected for their number, and the text of both.

No torch in here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from divot_lightning.evaluation.statistics.multiple_comparisons import LEVEL, holm
from divot_lightning.evaluation.statistics.paired_difference import COVERAGE, MIN_SEEDS, Difference, paired_difference
from divot_lightning.experiments.report.numbers import number
from divot_lightning.experiments.results.directions import Better, Near, compared
from divot_lightning.experiments.results.trials import TrialResult, paired_trials

DECIMALS = 3
"""CLIP similarities of good and bad models differ in the second decimal."""


@dataclass(frozen=True)
class Compared:
    """A group's difference from the baseline in one score.

    Attributes:
        difference: Of the scores, or of their distances to the best value.
        adjusted_p: Its p-value, corrected for all comparisons of the table; NaN if it is not tested.
    """

    difference: Difference
    adjusted_p: float


def compare_groups(
    scores: Mapping[str, Better], groups: Mapping[str, Sequence[TrialResult]], baseline: str
) -> dict[tuple[str, str], Compared]:
    """Compare every group with the baseline in every score, and correct the p-values over all of them.

    Args:
        scores: Which values are better, by score.
        groups: Results of all seeds by combination of variants.
        baseline: Name of the group that the others are compared with.

    Returns:
        The comparisons by group and score. The baseline, and groups without a seed in common with it, have none.
    """
    found: dict[tuple[str, str], Difference] = {}
    for group, trials in groups.items():
        for name, better in scores.items():
            # The distance to the best value is defined for the score of a seed, not for single items.
            pair = paired_trials(name, trials, groups[baseline], items=not isinstance(better, Near))
            if group != baseline and pair is not None:
                found[group, name] = paired_difference(*(compared(better, values_SI) for values_SI in pair))
    adjusted = holm([difference.p for difference in found.values()])
    return {at: Compared(found[at], p) for at, p in zip(found, adjusted, strict=True)}


def difference_text(better: Better, comparison: Compared) -> str:
    """Format a difference with its interval and, where it is tested, its corrected p-value."""
    difference = comparison.difference
    what = f"distance to {better.near:g}: " if isinstance(better, Near) else ""
    interval = "" if math.isnan(difference.low) else f" [{_signed(difference.low)}, {_signed(difference.high)}]"
    p = "" if math.isnan(comparison.adjusted_p) else f" p {_p_text(comparison.adjusted_p)}"
    return f"{what}{_signed(difference.mean)}{interval}{p}"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value, DECIMALS)


def comparison_note(scores: Mapping[str, Better], baseline: str, seeds: Sequence[int], tests: int) -> str:
    """Return the note below a table: what its numbers are, what its intervals cover, what its colours mean.

    Args:
        scores: Which values are better, by score.
        baseline: Name of the group that others are compared with.
        seeds: All seeds of a group.
        tests: Comparisons that have a p-value.
    """
    first = "Below a score the"
    if len(seeds) > 1:
        first = f"Mean over seeds {', '.join(map(str, seeds))}, below it the smallest and the largest, then the"
    parts = [
        f"{first} mean paired difference from {baseline} with its {COVERAGE:.0%} interval.",
        _interval_note(len(seeds)),
        _colour_note(len(seeds), tests),
        *_near_note(scores),
    ]
    return " ".join(parts)


def _interval_note(seeds: int) -> str:
    if seeds == 1:
        return (
            "The interval covers the clips, captions or questions that both were measured on, and not training again "
            "with another seed; a score without such items has no interval."
        )
    return (
        "It is Student's t interval over seeds, widened by the variation of clips, captions or questions within each "
        "seed; where all seeds share one measurement, it covers those items alone. Where nothing varies there is none."
    )


def _colour_note(seeds: int, tests: int) -> str:
    if seeds < MIN_SEEDS:
        return f"Nothing is coloured: fewer than {MIN_SEEDS} seeds support no conclusion."
    return (
        f"Coloured: p is below {LEVEL:g} after Holm's correction over the {tests} comparisons of this table that at "
        f"least {MIN_SEEDS} seeds allow. An interval by itself is not corrected."
    )


def _near_note(scores: Mapping[str, Better]) -> list[str]:
    targets = dict.fromkeys(f"{better.near:g}" for better in scores.values() if isinstance(better, Near))
    if not targets:
        return []
    return [
        f"A score whose best value is {' or '.join(targets)} is compared by its distance to that value; less is better."
    ]
