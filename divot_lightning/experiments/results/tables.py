"""Compare the variants of an experiment in a table; list its failures and published tables. No torch in here."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.statistics.multiple_comparisons import LEVEL
from divot_lightning.experiments.plan.experiment import Experiment
from divot_lightning.experiments.report.content import Cell, Table
from divot_lightning.experiments.report.numbers import number, spread_of
from divot_lightning.experiments.results.comparisons import (
    DECIMALS,
    Compared,
    compare_groups,
    comparison_note,
    difference_text,
)
from divot_lightning.experiments.results.directions import Better, heading, is_gain
from divot_lightning.experiments.results.power_table import power_table
from divot_lightning.experiments.results.trials import TrialResult, by_group, find_score, protocol_differences


def baseline_of(recipe: Experiment, results: Sequence[TrialResult]) -> str:
    """Return the group that others are compared with.

    Raises:
        UserError: The recipe's baseline is not one of the groups.
    """
    groups = list(by_group(results))
    if recipe.baseline and recipe.baseline not in groups:
        raise UserError(f"baseline is {recipe.baseline!r}; the combinations are {', '.join(groups)}.")
    return recipe.baseline or groups[0]


def result_table(recipe: Experiment, results: Sequence[TrialResult]) -> Table:
    """Return the comparison of the variants, a row per combination of variants.

    Each score has its mean, its range over seeds, and its paired difference from the baseline with the interval.
    Further columns hold the cost of training. A difference is coloured if it is significant after the correction for
    all comparisons.
    """
    keys = {find_score(name, results): name for name in recipe.scores}
    scores = {key: recipe.scores[name] for key, name in keys.items()}
    baseline, groups = baseline_of(recipe, results), by_group(results)
    mixed = protocol_differences(results)
    cost = {name: value for name, value in COSTS.items() if name != GPU or any(r.peak_gpu_mib for r in results)}
    comparisons = compare_groups(scores, groups, baseline)
    rows: list[list[Cell | str]] = []
    for group, trials in groups.items():
        measured = [_score_cell(name, scores[name], trials, comparisons.get((group, name))) for name in scores]
        rows.append([_label(group, trials, baseline), *measured, *(value(trials) for value in cost.values())])
    names = [f"{keys[key]}{' *' if key in mixed else ''} ({heading(better)})" for key, better in scores.items()]
    tests = sum(not math.isnan(each.adjusted_p) for each in comparisons.values())
    note = _note(recipe, comparison_note(scores, baseline, recipe.seeds, tests), mixed)
    return Table("Scores and cost", ["", *names, *cost], rows, note)


def seed_table(recipe: Experiment, results: Sequence[TrialResult]) -> Table | None:
    """Return which differences from the baseline the seeds can see; None without two seeds."""
    keys = {find_score(name, results): name for name in recipe.scores}
    scores = {key: recipe.scores[name] for key, name in keys.items()}
    return power_table(scores, by_group(results), baseline_of(recipe, results), keys)


def _note(recipe: Experiment, comparisons: str, mixed: Mapping[str, Sequence[str]]) -> str:
    amount = f": {recipe.amount:g}" if recipe.amount else ""
    parts = [
        comparisons,
        f"Matched by {recipe.matched_by}{amount}.",
        "Cost: of the training steps that a trial does not share; seconds are those of training (trials may run side "
        "by side), memory is resident memory, parameters are those of the stored components.",
    ]
    parts += [f"* protocols differ: {name} differs in {', '.join(keys)}." for name, keys in mixed.items()]
    return " ".join(parts)


def _label(group: str, trials: Sequence[TrialResult], baseline: str) -> Cell:
    failed = sum(bool(trial.failure) for trial in trials)
    waiting = sum(not trial.scores and not trial.failure for trial in trials)
    notes = ["baseline"] if group == baseline else []
    notes += [
        f"{count} of {len(trials)} {what}" for count, what in ((failed, "failed"), (waiting, "not done")) if count
    ]
    return Cell(group, False if failed else None, "\n".join(notes))


def _score_cell(name: str, better: Better, trials: Sequence[TrialResult], comparison: Compared | None) -> Cell:
    values = [trial.scores[name].value for trial in trials if name in trial.scores]
    if not values:
        return Cell("failed", False) if any(trial.failure for trial in trials) else Cell("not done")
    mean = fmean(values)
    lines = [spread_of(values, DECIMALS)] if len(values) > 1 and not math.isnan(mean) else []
    if comparison is None or math.isnan(comparison.difference.mean):
        return Cell(number(mean, DECIMALS), None, "\n".join(lines))
    lines.append(difference_text(better, comparison))
    clear = comparison.adjusted_p < LEVEL
    good = is_gain(better, comparison.difference.mean) if clear else None
    return Cell(number(mean, DECIMALS), good, "\n".join(lines))


def _seconds(trials: Sequence[TrialResult]) -> str:
    known = [trial.seconds for trial in trials if trial.seconds and not trial.failure]
    return f"{fmean(known):.0f}" if known else "-"


def _largest(values: Sequence[float], form: str) -> str:
    return format(max(values), form) if max(values) else "-"


GPU = "peak GPU MiB"
COSTS: dict[str, Callable[[Sequence[TrialResult]], str]] = {
    "seconds": _seconds,
    "peak MiB": lambda trials: _largest([trial.peak_mib for trial in trials], ".0f"),
    GPU: lambda trials: _largest([trial.peak_gpu_mib for trial in trials], ".0f"),
    "million parameters": lambda trials: _largest([trial.parameters / 1e6 for trial in trials], ".2f"),
}


def failure_table(results: Sequence[TrialResult]) -> Table | None:
    """Return the failed trials and their errors; None if none failed."""
    rows: list[list[Cell | str]] = [
        [Cell(result.trial.name, False), result.failure] for result in results if result.failure
    ]
    return Table("Failed trials", ["", "step and last line of its log"], rows, prose=True) if rows else None


def reference_tables(recipe: Experiment) -> list[Table]:
    """Return the published tables of the recipe, marked as another scale."""
    return [_reference(entry) for entry in recipe.reference]


def _reference(entry: Mapping[str, Any]) -> Table:
    rows: list[list[Cell | str]] = [[str(value) for value in row] for row in entry["rows"]]
    return Table(f"Published, at another scale: {entry['title']}", list(entry["columns"]), rows, entry.get("note", ""))
