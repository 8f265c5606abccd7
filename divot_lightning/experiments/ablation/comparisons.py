"""What the variants of an ablation are compared by: paired differences, corrected for their number, and in words.

No torch in here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from divot_lightning.evaluation.statistics.multiple_comparisons import LEVEL, holm
from divot_lightning.evaluation.statistics.paired_difference import COVERAGE, MIN_SEEDS, Difference, paired_difference
from divot_lightning.experiments.ablation.directions import Better, Near, compared
from divot_lightning.experiments.ablation.results import CellResult, paired_values
from divot_lightning.experiments.report.numbers import number

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
    scores: Mapping[str, Better], groups: Mapping[str, Sequence[CellResult]], baseline: str
) -> dict[tuple[str, str], Compared]:
    """Compare every group with the baseline in every score, and corrects the p-values over all of them.

    Args:
        scores: Which values are better, by score.
        groups: Results of all seeds by combination of variants.
        baseline: Name of the group that the others are compared with.

    Returns:
        By group and score; nothing for the baseline and for what has no seed in common with it.
    """
    found: dict[tuple[str, str], Difference] = {}
    for group, cells in groups.items():
        for name, better in scores.items():
            # The distance to the best value is that of a seed's score, not of its items.
            pair = paired_values(name, cells, groups[baseline], items=not isinstance(better, Near))
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
    """Return what stands in the cells of a table, what its intervals are over, and what its colours mean.

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
        _claim_note(len(seeds), tests),
        *_near_note(scores),
    ]
    return " ".join(parts)


def _interval_note(seeds: int) -> str:
    if seeds == 1:
        return (
            "It is over the clips, captions or questions that both were measured on, and says nothing about training "
            "again with another seed; a score without these has none."
        )
    return (
        "It is Student's t interval over seeds, widened by what clips, captions or questions differ in with every "
        "seed; where all seeds share a measurement, it is over those items alone. Where nothing varies there is none."
    )


def _claim_note(seeds: int, tests: int) -> str:
    if seeds < MIN_SEEDS:
        return f"Nothing is coloured: no claim rests on fewer than {MIN_SEEDS} seeds."
    return (
        f"Coloured: p is below {LEVEL:g} after Holm's correction over the {tests} comparisons of this table that at "
        f"least {MIN_SEEDS} seeds allow. An interval by itself is not corrected."
    )


def _near_note(scores: Mapping[str, Better]) -> list[str]:
    targets = dict.fromkeys(f"{better.near:g}" for better in scores.values() if isinstance(better, Near))
    if not targets:
        return []
    return [f"A score near {' or '.join(targets)} is compared by its distance to it, of which less is better."]
