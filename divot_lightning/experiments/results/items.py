"""Collect the values of single clips, captions and questions, to compare any two of them. No torch in here."""

import math
from collections.abc import Sequence
from statistics import fmean

from divot_lightning.experiments.plan.experiment import Experiment
from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.report.content import ItemScores
from divot_lightning.experiments.results.sources import folders_of, read_predictions
from divot_lightning.experiments.results.trials import TrialResult, by_group, find_score

DECIMALS = 4
"""Digits of a value in the report; more would only make the file larger."""


def item_scores(recipe: Experiment, grid: Grid, results: Sequence[TrialResult]) -> dict[str, ItemScores]:
    """Return the values of single items by score, for scores that at least two combinations have them of.

    With several seeds, the means of the combinations come first, then the values of every trial.
    """
    found = {}
    for name in recipe.scores:
        key = find_score(name, results)
        listed = {
            group: [t.items[key] for t in trials if t.items.get(key)] for group, trials in by_group(results).items()
        }
        groups = {group: trials for group, trials in listed.items() if trials}
        if len(groups) < 2:
            continue
        items = list(dict.fromkeys(item for trials in groups.values() for trial in trials for item in trial))
        alone = {r.trial.name: [r.items[key]] for r in results if r.items.get(key)} if len(recipe.seeds) > 1 else {}
        values = {
            name: [_mean([trial[item] for trial in trials if item in trial]) for item in items]
            for name, trials in (groups | alone).items()
        }
        found[name] = ItemScores(_labels(grid, key.partition(":")[0], items), values)
    return found


def _mean(values: Sequence[float]) -> float | None:
    present = [value for value in values if math.isfinite(value)]
    return round(fmean(present), DECIMALS) if present else None


def _labels(grid: Grid, source: str, items: Sequence[str]) -> list[str]:
    """Return the names of items, with their prompts if the measurement has such."""
    rows = [row for folder in folders_of(grid, source)[:1] for row in read_predictions(folder)]
    prompts = {str(row["id"]): row["prompt"] for row in rows if row.get("prompt")}
    return [f"{item}: {prompts[item]}" if item in prompts else item for item in items]
