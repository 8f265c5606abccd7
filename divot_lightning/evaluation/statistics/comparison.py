"""Compare scores: how their protocols differ, how much their values differ, and how sure the difference is.

No torch in here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divot_lightning.errors import UserError
from divot_lightning.evaluation.predictions import MERGED, read_predictions
from divot_lightning.evaluation.protocol import differing_protocols
from divot_lightning.evaluation.scores import SCORES, Score, load_scores
from divot_lightning.evaluation.statistics.paired_difference import (
    COVERAGE,
    Difference,
    Values,
    grouped_difference,
    paired_difference,
)
from divot_lightning.io.jsonl import Row

ALL, MEAN_OF_GROUPS = "all", "mean_of_groups"
INTERVAL_NOTE = (
    "Intervals are t intervals over the items that both have, one by one and not corrected for their number: of twenty "
    "true differences of zero one misses it. They say nothing about training again with another seed."
)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        name: Its path, as given.
        scores: By name.
        rows: Its predictions by item; empty if there are none.
    """

    name: str
    scores: Mapping[str, Score]
    rows: Mapping[str, Row]

    def values(self, score: str) -> dict[str, float]:
        """Return an item's own value of a score, by item; items that the score does not count are left out."""
        found = {item: row.get("scores", {}).get(score) for item, row in self.rows.items()}
        return {item: float(value) for item, value in found.items() if value is not None}


def load_evaluation(location: str | Path) -> Evaluation:
    """Read an evaluation's folder, or a file of scores alone.

    Raises:
        UserError: There are no scores.
    """
    path = Path(location)
    folder = path if path.is_dir() else path.parent
    scores = load_scores(path / SCORES if path.is_dir() else path)
    rows = read_predictions(folder / MERGED) if path.is_dir() and (folder / MERGED).is_file() else []
    return Evaluation(str(location), {score.name: score for score in scores}, {row["id"]: row for row in rows})


def shared_values(values: Sequence[Mapping[str, float]]) -> Values:
    """Return the values of the items that all evaluations have, (evaluations, items).

    Args:
        values: For each evaluation the values of a score by item, as `Evaluation.values` returns them.

    >>> shared_values([{"a": 1.0, "b": 0.0}, {"b": 1.0, "c": 1.0}]).tolist()
    [[0.0], [1.0]]
    """
    items = [item for item in values[0] if all(item in other for other in values)]
    return np.array([[each[item] for item in items] for each in values], dtype=np.float64)


def paired_groups(first: Evaluation, second: Evaluation, score: str) -> list[Values]:
    """Return the values of the shared items by group, (2, items) each, for a mean of group means; else nothing.

    The items of a group have a value under the group's name, besides the one under `all`.

    Args:
        first: An evaluation.
        second: Another.
        score: Name of the mean, such as `mvbench/mean_of_groups`.
    """
    benchmark, _, name = score.rpartition("/")
    everything = f"{benchmark}/{ALL}"
    shared = [row["scores"] for item, row in first.rows.items() if item in second.rows and "scores" in row]
    names = dict.fromkeys(key for scores in shared for key in scores if key.startswith(f"{benchmark}/"))
    groups = [key for key in names if key != everything and not all(key in scores for scores in shared)]
    found = [shared_values([first.values(group), second.values(group)]) for group in groups]
    if name != MEAN_OF_GROUPS or not groups or sum(pair.shape[1] for pair in found) != len(shared):
        return []
    means = [[float(np.mean([pair[side].mean() for pair in found])) for side in range(2)]]
    stated = [[evaluation.scores[score].value for evaluation in (first, second)]]
    # The values must be those that the score was computed from: all of its items, and no others.
    return found if np.allclose(means, stated, rtol=0, atol=1e-6) else []


def score_difference(first: Evaluation, second: Evaluation, score: str) -> tuple[Difference, int]:
    """Return second minus first with its t interval over the shared items, and how many those are.

    A score without values per item, such as a Frechet distance, has a difference but no interval.
    """
    groups = paired_groups(first, second, score)
    if groups:
        return grouped_difference([(other, one) for one, other in groups]), sum(len(one) for one, _ in groups)
    one, other = shared_values([first.values(score), second.values(score)])
    whole = second.scores[score].value - first.scores[score].value
    if len(one) < 2:
        return Difference(whole, math.nan, math.nan, "nothing"), len(one)
    return paired_difference(other[None], one[None]), len(one)


def shared_scores(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the names of the scores that all evaluations have.

    Raises:
        UserError: There is none.
    """
    names = [name for name in evaluations[0].scores if all(name in other.scores for other in evaluations)]
    if not names:
        both = " and ".join(f"{e.name} ({', '.join(list(e.scores)[:4])})" for e in evaluations)
        raise UserError(f"no score is in all of them: {both}")
    return names


def score_table(evaluations: Sequence[Evaluation], *, mixed_protocols: bool = False) -> list[list[str]]:
    """Put the scores that all evaluations have into one table.

    Args:
        evaluations: Two or more.
        mixed_protocols: Whether scores with different protocols may be compared; their names are then marked with `*`.

    Returns:
        Rows of columns, the first row the header. For two evaluations the difference, its interval and the number of
        its items are added.

    Raises:
        UserError: They have no score in common, or protocols differ and `mixed_protocols` is off.
    """
    header = ["score", *letters(len(evaluations))]
    pair = len(evaluations) == 2
    rows = [[*header, "B - A", f"{COVERAGE:.0%} interval", "items"] if pair else header]
    for name in shared_scores(evaluations):
        different = differing_protocols([each.scores[name] for each in evaluations])
        if different and not mixed_protocols:
            names = ", ".join(different)
            raise UserError(
                f"{name} was not measured in one way, what differs: {names[:300]}\n"
                "To see both nevertheless: --mixed-protocols"
            )
        columns = [f"{name}{' *' if different else ''}", *(f"{e.scores[name].value:.4f}" for e in evaluations)]
        if pair:
            columns += _difference_columns(*score_difference(evaluations[0], evaluations[1], name))
        rows.append(columns)
    return rows


def letters(count: int) -> list[str]:
    """Return the names of evaluations in a table.

    >>> letters(3)
    ['A', 'B', 'C']
    """
    return [chr(ord("A") + number) for number in range(count)]


def _difference_columns(difference: Difference, items: int) -> list[str]:
    interval = "" if math.isnan(difference.low) else f"{difference.low:+.4f} to {difference.high:+.4f}"
    mean = "" if math.isnan(difference.mean) else f"{difference.mean:+.4f}"
    return [mean, interval, str(items) if items else ""]
