"""The tables of an ablation, as report tables, CSV and Markdown. No torch in here."""

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
from divot_lightning.experiments.ablation.results import CellResult, by_group, protocol_differences
from divot_lightning.experiments.report.content import Cell, Table
from divot_lightning.experiments.report.numbers import number, spread_of


def shown_scores(recipe: AblationRecipe, results: Sequence[CellResult]) -> dict[str, Better]:
    """Return the scores of the tables: the recipe's.

    Raises:
        UserError: Cells are done, and none of them has a score that the recipe names.
    """
    measured = {name for result in results for name in result.scores}
    missing = sorted(set(recipe.scores) - measured)
    if measured and missing:
        raise UserError(f"the recipe names scores that no cell has: {', '.join(missing)}; there are {sorted(measured)}")
    return dict(recipe.scores)


def baseline_of(recipe: AblationRecipe, results: Sequence[CellResult]) -> str:
    """Return the group that others are compared with.

    Raises:
        UserError: The recipe's baseline is none of the groups.
    """
    groups = list(by_group(results))
    if recipe.baseline and recipe.baseline not in groups:
        raise UserError(f"baseline is {recipe.baseline!r}; the combinations are {', '.join(groups)}.")
    return recipe.baseline or groups[0]


def result_table(recipe: AblationRecipe, results: Sequence[CellResult]) -> Table:
    """Return the one table of an ablation, a row per combination of variants.

    For every score its mean, its range over seeds and its paired difference from the baseline with the interval;
    beside them what the combination's training cost. Coloured is what holds after the correction for all comparisons.
    """
    scores, baseline, groups = shown_scores(recipe, results), baseline_of(recipe, results), by_group(results)
    mixed = protocol_differences(results)
    cost = {name: value for name, value in COSTS.items() if name != GPU or any(r.peak_gpu_mib for r in results)}
    comparisons = compare_groups(scores, groups, baseline)
    rows: list[list[Cell | str]] = []
    for group, cells in groups.items():
        measured = [_score_cell(name, scores[name], cells, comparisons.get((group, name))) for name in scores]
        rows.append([_label(group, cells, baseline), *measured, *(value(cells) for value in cost.values())])
    names = [f"{name}{' *' if name in mixed else ''} ({heading(better)})" for name, better in scores.items()]
    tests = sum(not math.isnan(each.adjusted_p) for each in comparisons.values())
    note = _note(recipe, comparison_note(scores, baseline, recipe.seeds, tests), mixed)
    return Table("Scores and cost", ["", *names, *cost], rows, note)


def _note(recipe: AblationRecipe, comparisons: str, mixed: Mapping[str, Sequence[str]]) -> str:
    amount = f": {recipe.amount:g}" if recipe.amount else ""
    parts = [
        comparisons,
        f"Matched by {recipe.matched_by}{amount}.",
        "Cost: of the training that a cell does by itself; seconds are those of training (cells may have run side by "
        "side), memory is resident memory, parameters are those of the stored components.",
    ]
    parts += [f"* not measured in one way: {name} differs in {', '.join(keys)}." for name, keys in mixed.items()]
    return " ".join(parts)


def _label(group: str, cells: Sequence[CellResult], baseline: str) -> Cell:
    failed = sum(bool(cell.failure) for cell in cells)
    waiting = sum(not cell.scores and not cell.failure for cell in cells)
    said = ["baseline"] if group == baseline else []
    said += [f"{count} of {len(cells)} {what}" for count, what in ((failed, "failed"), (waiting, "not done")) if count]
    return Cell(group, False if failed else None, "\n".join(said))


def _score_cell(name: str, better: Better, cells: Sequence[CellResult], comparison: Compared | None) -> Cell:
    values = [cell.scores[name].value for cell in cells if name in cell.scores]
    if not values:
        return Cell("failed", False) if any(cell.failure for cell in cells) else Cell("not done")
    mean = math.fsum(values) / len(values)
    lines = [spread_of(values, DECIMALS)] if len(values) > 1 and not math.isnan(mean) else []
    if comparison is None or math.isnan(comparison.difference.mean):
        return Cell(number(mean, DECIMALS), None, "\n".join(lines))
    lines.append(difference_text(better, comparison))
    clear = comparison.adjusted_p < LEVEL
    good = is_gain(better, comparison.difference.mean) if clear else None
    return Cell(number(mean, DECIMALS), good, "\n".join(lines))


def _seconds(cells: Sequence[CellResult]) -> str:
    known = [cell.seconds for cell in cells if cell.seconds and not cell.failure]
    return f"{math.fsum(known) / len(known):.0f}" if known else "-"


def _largest(values: Sequence[float], form: str) -> str:
    return format(max(values), form) if max(values) else "-"


GPU = "peak GPU MiB"
COSTS: dict[str, Callable[[Sequence[CellResult]], str]] = {
    "seconds": _seconds,
    "peak MiB": lambda cells: _largest([cell.peak_mib for cell in cells], ".0f"),
    GPU: lambda cells: _largest([cell.peak_gpu_mib for cell in cells], ".0f"),
    "million parameters": lambda cells: _largest([cell.parameters / 1e6 for cell in cells], ".2f"),
}


def failure_table(results: Sequence[CellResult]) -> Table | None:
    """Return which cells failed and what they said; None if none did."""
    rows: list[list[Cell | str]] = [
        [Cell(result.cell.name, False), result.failure] for result in results if result.failure
    ]
    return Table("Failed cells", ["", "step and last line of its log"], rows, prose=True) if rows else None


def reference_tables(recipe: AblationRecipe) -> list[Table]:
    """Return the published tables of the recipe, marked as another scale."""
    return [_reference(entry) for entry in recipe.reference]


def _reference(entry: Mapping[str, Any]) -> Table:
    rows: list[list[Cell | str]] = [[str(value) for value in row] for row in entry["rows"]]
    return Table(f"Published, at another scale: {entry['title']}", list(entry["columns"]), rows, entry.get("note", ""))


CSV_COLUMNS = ("cell", "group", "seed", "score", "value", "count", "protocol_sha256", "failure")
CSV_COSTS = ("seconds", "peak_mib", "peak_gpu_mib", "parameters")


def as_csv(results: Sequence[CellResult]) -> str:
    """Return one row per cell and score, with the hash of its protocol and the cell's cost; why a cell failed."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*CSV_COLUMNS, *CSV_COSTS])
    for result in results:
        cell, cost = result.cell, [getattr(result, name) for name in CSV_COSTS]
        if not result.scores:
            failure = result.failure or "not done"
            writer.writerow([cell.name, cell.group, cell.seed, "", "", "", "", failure, *cost])
        for name, score in result.scores.items():
            known = hashlib.sha256(json.dumps(score.protocol, sort_keys=True).encode()).hexdigest()[:16]
            writer.writerow([cell.name, cell.group, cell.seed, name, score.value, score.count, known, "", *cost])
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
