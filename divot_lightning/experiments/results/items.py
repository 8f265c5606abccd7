"""Collect the values of single clips, captions and questions, to compare any two combinations. No torch in here."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

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
        counts = {len(values) for rows in groups.values() for values in rows}
        means = {group: [_mean(item) for item in zip(*rows, strict=True)] for group, rows in groups.items() if rows}
        if len(counts) == 1 and len(means) > 1:
            count = counts.pop()
            found[name] = ItemScores(_labels(grid, key.partition(":")[0], count), means)
    return found


def _mean(values: Sequence[float]) -> float | None:
    present = [value for value in values if math.isfinite(value)]
    return round(math.fsum(present) / len(present), DECIMALS) if present else None


def _labels(grid: Grid, source: str, count: int) -> list[str]:
    """Return the prompts or names of the items of a measurement, or their numbers if it keeps none."""
    for folder in folders_of(grid, source):
        rows = read_predictions(folder) or _texts(folder)
        labels = [str(row.get("prompt") or row.get("caption") or row.get("id", "")) for row in rows]
        if len(labels) == count:
            return [f"{number}: {label}" for number, label in enumerate(labels)]
    return [str(number) for number in range(count)]


def _texts(folder: Path) -> list[dict[str, object]]:
    path = folder / "texts.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []
