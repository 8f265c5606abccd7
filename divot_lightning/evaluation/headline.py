"""Order and present scores: a benchmark's main score first, with warnings about it. No torch in here."""

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from divot_lightning.evaluation.scores import Score

Value = TypeVar("Value")

FRACTIONS = {
    "unparsed": "answers chose no option",
    "unreadable": "videos could not be read",
    "unjudged": "answers have no verdict that can be read",
    "non_finite_features": "clips have features that are not finite",
}
"""Fractions that tell how far a score can be trusted."""
WRONG = "; they count as wrong"
WARN_ABOVE = 0.05
"""A fraction above this one gets a warning before the scores."""


def headline_first(values: Mapping[str, Value], main_scores: Sequence[str]) -> dict[str, Value]:
    """Return scores by name with the benchmark's main score first and the fractions in `FRACTIONS` next.

    Args:
        values: By name.
        main_scores: The first of these that was measured is the main score; without any it is the first of all.

    >>> values = {"a task": 0, "all": 1, "mean_of_groups": 2, "unparsed": 3, "unreadable": 4}
    >>> list(headline_first(values, ["mean_of_groups", "all"]))
    ['mean_of_groups', 'unparsed', 'unreadable', 'a task', 'all']
    """
    first = next((name for name in (*main_scores, *values) if name in values and name not in FRACTIONS), None)
    order = [*([first] if first else []), *(name for name in FRACTIONS if name in values)]
    return {name: values[name] for name in dict.fromkeys([*order, *values])}


def warnings(scores: Iterable[Score]) -> list[str]:
    """Return a line for every fraction in `FRACTIONS` above `WARN_ABOVE`, with what it means for the scores."""
    lines = []
    for score in scores:
        name = score.name.rpartition("/")[2]
        if name in FRACTIONS and score.value > WARN_ABOVE:
            count = round(score.value * score.count)
            lines.append(
                f"WARNING: {score.value:.1%} of {score.name.partition('/')[0]}: {count} of {score.count} "
                f"{FRACTIONS[name]}{_meaning(name, score.protocol)}"
            )
    return lines


def _meaning(name: str, protocol: Mapping[str, object]) -> str:
    if name == "unparsed":
        option = protocol.get("unparsed_as")
        return f"; they count as option {string.ascii_uppercase[option]}" if isinstance(option, int) else WRONG
    if name == "unjudged":
        judge = protocol.get("judge")
        rule = f"; they count as {judge['unjudged_as']}" if isinstance(judge, Mapping) else ""
        return f"{rule}; the replies: judge_reply in predictions.jsonl"
    if name == "unreadable":
        return "; they are left out" if "real_clips" in protocol else WRONG
    return "; the distance is undefined"


def fractions_of(scores: Iterable[Score]) -> str:
    """Return the fractions in `FRACTIONS`, to be shown beside the benchmark's main score."""
    shown = [(score.name.rpartition("/")[2], score.value) for score in scores]
    return ", ".join(f"{name} {value:.1%}" for name, value in shown if name in FRACTIONS)
