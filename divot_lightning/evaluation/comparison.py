"""Two scores beside each other: what differs in their protocols, by how much the values differ, and how sure that is.

No torch in here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divot_lightning.ablation.comparison import COVERAGE, Difference, paired_difference
from divot_lightning.errors import UserError
from divot_lightning.evaluation.predictions import MERGED, Row, read_rows
from divot_lightning.evaluation.scores import Score, load_scores

SCORES = "scores.json"
ABSENT = "(not stated)"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        name: As it was given.
        scores: By name.
        rows: Its predictions by item; empty where there are none.
    """

    name: str
    scores: Mapping[str, Score]
    rows: Mapping[str, Row]


def load_evaluation(place: str | Path) -> Evaluation:
    """Reads an evaluation's folder, or a file of scores alone.

    Raises:
        UserError: There are no scores.
    """
    path = Path(place)
    folder = path if path.is_dir() else path.parent
    scores = load_scores(path / SCORES if path.is_dir() else path)
    rows = read_rows(folder / MERGED) if path.is_dir() and (folder / MERGED).is_file() else []
    return Evaluation(str(place), {score.name: score for score in scores}, {row["id"]: row for row in rows})


def differences(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Lists where two values of JSON differ.

    Args:
        first: One value.
        second: The other.
        name: What they are called.

    Returns:
        Dotted names with both values, `(not stated)` where one has none.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4})
    [('b.c', 2, 3), ('d', '(not stated)', 4)]
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        found = []
        for key in dict.fromkeys([*first, *second]):
            inner = f"{name}.{key}" if name else str(key)
            found += differences(first.get(key, ABSENT), second.get(key, ABSENT), inner)
        return found
    return [] if first == second else [(name, first, second)]


def paired_values(first: Evaluation, second: Evaluation, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of the items that both evaluations have for a score, each (items,) float64."""
    shared = [
        (one["scores"][score], other["scores"][score])
        for item, one in first.rows.items()
        if score in one.get("scores", {}) and score in (other := second.rows.get(item, {})).get("scores", {})
    ]
    pairs = np.array(shared, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def score_difference(first: Evaluation, second: Evaluation, score: str) -> tuple[Difference, int]:
    """Returns second minus first with its bootstrap interval over the shared items, and how many those are.

    Without values per item, as for a Frechet distance, there is a difference and no interval.
    """
    one, other = paired_values(first, second, score)
    whole = second.scores[score].value - first.scores[score].value
    if len(one) < 2:
        return Difference(whole, math.nan, math.nan, "nothing"), len(one)
    return paired_difference(other[None], one[None]), len(one)


def protocols_differ(evaluations: Sequence[Evaluation], score: str) -> list[tuple[str, Any, Any]]:
    """Lists where the protocol or the count of any of the evaluations differs from the first's."""
    first, *others = ({"count": e.scores[score].count, **e.scores[score].protocol} for e in evaluations)
    found = [difference for other in others for difference in differences(first, other)]
    return list({name: (name, before, now) for name, before, now in reversed(found)}.values())[::-1]


def score_table(evaluations: Sequence[Evaluation], *, mixed_protocols: bool = False) -> list[list[str]]:
    """Puts the scores that all evaluations have into one table.

    Args:
        evaluations: Two or more.
        mixed_protocols: Whether scores that were not measured in one way may stand beside each other; their names are
            then marked with `*`.

    Returns:
        Rows of cells, the first one the header; of two evaluations with their difference, its interval and the number
        of items that it is from.

    Raises:
        UserError: They have no score in common, or protocols differ and may not.
    """
    names = [name for name in evaluations[0].scores if all(name in other.scores for other in evaluations)]
    if not names:
        both = " and ".join(f"{e.name} ({', '.join(list(e.scores)[:4])})" for e in evaluations)
        raise UserError(f"no score is in all of them: {both}")
    header = ["score", *(letter for letter, _ in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", evaluations, strict=False))]
    pair = len(evaluations) == 2
    rows = [[*header, "B - A", f"{COVERAGE:.0%} interval", "items"] if pair else header]
    for name in names:
        different = protocols_differ(evaluations, name)
        if different and not mixed_protocols:
            what = ", ".join(part for part, _, _ in different)
            raise UserError(
                f"{name} was not measured in one way, what differs: {what[:300]}\n"
                "To see both nevertheless: --mixed-protocols"
            )
        cells = [f"{name}{' *' if different else ''}", *(f"{e.scores[name].value:.4f}" for e in evaluations)]
        if pair:
            cells += _difference_cells(*score_difference(evaluations[0], evaluations[1], name))
        rows.append(cells)
    return rows


def _difference_cells(difference: Difference, items: int) -> list[str]:
    interval = "" if math.isnan(difference.low) else f"{difference.low:+.4f} to {difference.high:+.4f}"
    return [f"{difference.mean:+.4f}", interval, str(items) if items else ""]
