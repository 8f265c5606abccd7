"""Build the tables of an ablation, for the report, as CSV and as Markdown. No torch in here."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.statistics.multiple_comparisons import LEVEL
from divot_lightning.experiments.ablation.comparisons import (
    DECIMALS,
    Compared,
    compare_groups,
    comparison_note,
    difference_text,
)
from divot_lightning.experiments.ablation.directions import Better, heading, is_gain
from divot_lightning.experiments.ablation.recipe import AblationRecipe
from divot_lightning.experiments.ablation.results import TrialResult, by_group, protocol_differences
from divot_lightning.experiments.report.content import Cell, Table
from divot_lightning.experiments.report.numbers import number, spread_of


def shown_scores(recipe: AblationRecipe, results: Sequence[TrialResult]) -> dict[str, Better]:
    """Return the scores of the tables: the recipe's.

    Raises:
        UserError: The recipe names a score that no trial has, though trials are done.
    """
    measured = {name for result in results for name in result.scores}
    missing = sorted(set(recipe.scores) - measured)
    if measured and missing:
        raise UserError(
            f"the recipe names scores that no trial has: {', '.join(missing)}; there are {sorted(measured)}"
        )
    return dict(recipe.scores)


def baseline_of(recipe: AblationRecipe, results: Sequence[TrialResult]) -> str:
    """Return the group that others are compared with.

    Raises:
        UserError: The recipe's baseline is not one of the groups.
    """
    groups = list(by_group(results))
    if recipe.baseline and recipe.baseline not in groups:
        raise UserError(f"baseline is {recipe.baseline!r}; the combinations are {', '.join(groups)}.")
    return recipe.baseline or groups[0]


def result_table(recipe: AblationRecipe, results: Sequence[TrialResult]) -> Table:
    """Return the main table of an ablation, a row per combination of variants.

    Each score has its mean, its range over seeds, and its paired difference from the baseline with the interval.
    Further columns hold the cost of training. A difference is coloured if it is significant after the correction for
    all comparisons.
    """
    scores, baseline, groups = shown_scores(recipe, results), baseline_of(recipe, results), by_group(results)
    mixed = protocol_differences(results)
    cost = {name: value for name, value in COSTS.items() if name != GPU or any(r.peak_gpu_mib for r in results)}
    comparisons = compare_groups(scores, groups, baseline)
    rows: list[list[Cell | str]] = []
    for group, trials in groups.items():
        measured = [_score_cell(name, scores[name], trials, comparisons.get((group, name))) for name in scores]
        rows.append([_label(group, trials, baseline), *measured, *(value(trials) for value in cost.values())])
    names = [f"{name}{' *' if name in mixed else ''} ({heading(better)})" for name, better in scores.items()]
    tests = sum(not math.isnan(each.adjusted_p) for each in comparisons.values())
    note = _note(recipe, comparison_note(scores, baseline, recipe.seeds, tests), mixed)
    return Table("Scores and cost", ["", *names, *cost], rows, note)


def _note(recipe: AblationRecipe, comparisons: str, mixed: Mapping[str, Sequence[str]]) -> str:
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
    mean = math.fsum(values) / len(values)
    lines = [spread_of(values, DECIMALS)] if len(values) > 1 and not math.isnan(mean) else []
    if comparison is None or math.isnan(comparison.difference.mean):
        return Cell(number(mean, DECIMALS), None, "\n".join(lines))
    lines.append(difference_text(better, comparison))
    clear = comparison.adjusted_p < LEVEL
    good = is_gain(better, comparison.difference.mean) if clear else None
    return Cell(number(mean, DECIMALS), good, "\n".join(lines))


def _seconds(trials: Sequence[TrialResult]) -> str:
    known = [trial.seconds for trial in trials if trial.seconds and not trial.failure]
    return f"{math.fsum(known) / len(known):.0f}" if known else "-"


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


def reference_tables(recipe: AblationRecipe) -> list[Table]:
    """Return the published tables of the recipe, marked as another scale."""
    return [_reference(entry) for entry in recipe.reference]


def _reference(entry: Mapping[str, Any]) -> Table:
    rows: list[list[Cell | str]] = [[str(value) for value in row] for row in entry["rows"]]
    return Table(f"Published, at another scale: {entry['title']}", list(entry["columns"]), rows, entry.get("note", ""))


CSV_COLUMNS = ("cell", "group", "seed", "score", "value", "count", "protocol_sha256", "failure")
"""The first column holds the name of the trial; its heading is an old one, which readers of these files know."""
CSV_COSTS = ("seconds", "peak_mib", "peak_gpu_mib", "parameters")


def as_csv(results: Sequence[TrialResult]) -> str:
    """Return one row per trial and score, with the hash of its protocol and the cost; failures with their reason."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*CSV_COLUMNS, *CSV_COSTS])
    for result in results:
        trial, cost = result.trial, [getattr(result, name) for name in CSV_COSTS]
        if not result.scores:
            failure = result.failure or "not done"
            writer.writerow([trial.name, trial.group, trial.seed, "", "", "", "", failure, *cost])
        for name, score in result.scores.items():
            known = hashlib.sha256(json.dumps(score.protocol, sort_keys=True).encode()).hexdigest()[:16]
            writer.writerow([trial.name, trial.group, trial.seed, name, score.value, score.count, known, "", *cost])
    return stream.getvalue()


def as_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown; the further lines of a cell follow in brackets."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    def text(cell: Cell | str) -> str:
        cell = Cell(cell) if isinstance(cell, str) else cell
        detail = f" ({'; '.join(cell.detail.splitlines())})" if cell.detail else ""
        return f"{cell.text}{detail}".replace("|", "\\|")

    rest = "|---" if table.prose else "|---:"
    head = ["| " + " | ".join(table.columns) + " |", "|---" + rest * (len(table.columns) - 1) + "|"]
    rows = ["| " + " | ".join(map(text, row)) + " |" for row in table.rows]
    return "\n".join([f"### {table.title}", "", *head, *rows, "", table.note, ""])
