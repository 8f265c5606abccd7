"""Collect the values of single clips, captions and questions, to compare any two combinations. No torch in here."""

import math
from collections.abc import Sequence

from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.plan.recipe import Experiment
from divot_lightning.experiments.report.content import ItemScores
from divot_lightning.experiments.results.sources import folders_of, read_predictions
from divot_lightning.experiments.results.trials import TrialResult, by_group, find_score

DECIMALS = 4
"""Digits of a value in the report; more would only make the file larger."""


def item_scores(recipe: Experiment, grid: Grid, results: Sequence[TrialResult]) -> dict[str, ItemScores]:
    """Return the values of single items by score, for scores that at least two combinations have them of."""
    found = {}
    for name in recipe.scores:
        key = find_score(name, results)
        groups = {
            group: [t.items[key] for t in trials if t.items.get(key)] for group, trials in by_group(results).items()
        }
        trials = [values for rows in groups.values() for values in rows]
        items = [item for item in trials[0] if all(item in values for values in trials)] if trials else []
        means = {
            group: [_mean([row[item] for row in rows]) for item in items] for group, rows in groups.items() if rows
        }
        if items and len(means) > 1:
            found[name] = ItemScores(_labels(grid, key.partition(":")[0], items), means)
    return found


def _mean(values: Sequence[float]) -> float | None:
    present = [value for value in values if math.isfinite(value)]
    return round(math.fsum(present) / len(present), DECIMALS) if present else None


def _labels(grid: Grid, source: str, items: Sequence[str]) -> list[str]:
    """Return the names of items, with their prompts or questions where the measurement keeps some."""
    for folder in folders_of(grid, source):
        texts = {str(row.get("id")): row.get("prompt") or row.get("question") for row in read_predictions(folder)}
        if all(texts.get(item) for item in items):
            return [f"{item}: {texts[item]}" for item in items]
    return list(items)
