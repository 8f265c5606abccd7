"""The tables of an ablation, as report tables, CSV and Markdown. No torch in here."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from divot_lightning.ablation.comparison import COVERAGE, Difference, paired_difference
from divot_lightning.ablation.recipe import AblationRecipe, Better
from divot_lightning.ablation.results import CellResult, by_group, paired_values
from divot_lightning.errors import UserError
from divot_lightning.report.content import Cell, Table
from divot_lightning.report.numbers import number, spread_of

ARROWS: dict[Better, str] = {"higher": "up", "lower": "down"}


def shown_scores(recipe: AblationRecipe, results: Sequence[CellResult]) -> dict[str, Better]:
    """Returns the scores of the tables: the recipe's.

    Raises:
        UserError: Cells are done, and none of them has a score that the recipe names.
    """
    measured = {name for result in results for name in result.scores}
    missing = sorted(set(recipe.scores) - measured)
    if measured and missing:
        raise UserError(f"the recipe names scores that no cell has: {', '.join(missing)}; there are {sorted(measured)}")
    return dict(recipe.scores)


def baseline_of(recipe: AblationRecipe, results: Sequence[CellResult]) -> str:
    """Returns the group that others are compared with.

    Raises:
        UserError: The recipe's baseline is none of the groups.
    """
    groups = list(by_group(results))
    if recipe.baseline and recipe.baseline not in groups:
        raise UserError(f"baseline is {recipe.baseline!r}; the combinations are {', '.join(groups)}.")
    return recipe.baseline or groups[0]


def score_table(recipe: AblationRecipe, results: Sequence[CellResult]) -> Table:
    """Returns mean and range over seeds of every score, a row per combination of variants."""
    scores = shown_scores(recipe, results)
    rows: list[list[Cell | str]] = []
    for group, cells in by_group(results).items():
        values = {name: [cell.scores[name].value for cell in cells if name in cell.scores] for name in scores}
        missing = sum(not cell.scores for cell in cells)
        label = Cell(group, None if not missing else False, f"{missing} of {len(cells)} failed" if missing else "")
        rows.append([label, *map(_mean_and_range, values.values())])
    columns = ["", *(f"{name} ({ARROWS[better]})" for name, better in scores.items())]
    note = (
        f"Mean over seeds {', '.join(map(str, recipe.seeds))}, below it the smallest and the largest. "
        f"Matched by {recipe.matched_by}{f': {recipe.amount:g}' if recipe.amount else ''}."
    )
    return Table("Scores", columns, rows, note)


def _mean_and_range(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("failed", False)
    return Cell(number(math.fsum(values) / len(values)), None, spread_of(values) if len(values) > 1 else "")


def difference_table(recipe: AblationRecipe, results: Sequence[CellResult]) -> Table:
    """Returns the paired difference of every combination from the baseline, with its bootstrap interval."""
    scores, baseline = shown_scores(recipe, results), baseline_of(recipe, results)
    groups = by_group(results)
    rows: list[list[Cell | str]] = []
    for group, cells in groups.items():
        if group != baseline:
            pairs = {name: paired_values(name, cells, groups[baseline]) for name in scores}
            found = {name: paired_difference(*pair) if pair else None for name, pair in pairs.items()}
            rows.append([group, *(_difference_cell(found[name], scores[name]) for name in scores)])
    note = (
        f"Mean paired difference; in brackets the {COVERAGE:.0%} bootstrap interval over the clips, captions or "
        "questions that both were measured on (and over seeds, from three on). A score without items, such as a "
        "Frechet distance, has no interval with fewer than three seeds. Marked: the interval lies on one side of zero."
    )
    return Table(f"Difference from {baseline}", ["", *scores], rows, note)


def _difference_cell(difference: Difference | None, better: Better) -> Cell:
    if difference is None or math.isnan(difference.mean):
        return Cell("-")
    interval = "" if math.isnan(difference.low) else f"[{_signed(difference.low)}, {_signed(difference.high)}]"
    good = (difference.mean > 0) == (better == "higher") if difference.clear else None
    return Cell(_signed(difference.mean), good, interval or "no interval")


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def cost_table(results: Sequence[CellResult]) -> Table:
    """Returns time, memory and parameters of what each combination trained by itself."""
    rows: list[list[Cell | str]] = []
    for group, cells in by_group(results).items():
        seconds = [cell.seconds for cell in cells if cell.seconds]
        row = [
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "-",
            f"{max(cell.peak_mib for cell in cells):.0f}",
            f"{max(cell.parameters for cell in cells) / 1e6:.2f}",
        ]
        rows.append([group, *row])
    note = (
        "Training steps that no other cell shares: mean wall time in seconds (cells may have run side by side), "
        "largest resident memory in MiB, parameters of the stored components in millions."
    )
    return Table("Cost", ["", "seconds", "peak MiB", "million parameters"], rows, note)


def failure_table(results: Sequence[CellResult]) -> Table | None:
    """Returns which cells failed and what they said; None if none did."""
    rows: list[list[Cell | str]] = [
        [Cell(result.cell.name, False), result.failure] for result in results if result.failure
    ]
    return Table("Failed cells", ["", "step and last line of its log"], rows) if rows else None


def reference_tables(recipe: AblationRecipe) -> list[Table]:
    """Returns the published tables of the recipe, marked as another scale."""
    return [_reference(entry) for entry in recipe.reference]


def _reference(entry: Mapping[str, Any]) -> Table:
    rows: list[list[Cell | str]] = [[str(value) for value in row] for row in entry["rows"]]
    return Table(f"Published, at another scale: {entry['title']}", list(entry["columns"]), rows, entry.get("note", ""))


def as_csv(results: Sequence[CellResult]) -> str:
    """Returns one row per cell and score, with the hash of its protocol; failed cells have their message."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["cell", "group", "seed", "score", "value", "count", "protocol_sha256", "failure"])
    for result in results:
        cell = result.cell
        if not result.scores:
            writer.writerow([cell.name, cell.group, cell.seed, "", "", "", "", result.failure or "not done"])
        for name, score in result.scores.items():
            known = hashlib.sha256(json.dumps(score.protocol, sort_keys=True).encode()).hexdigest()[:16]
            writer.writerow([cell.name, cell.group, cell.seed, name, score.value, score.count, known, ""])
    return stream.getvalue()


def as_markdown(tables: Sequence[Table]) -> str:
    """Returns tables as Markdown; the second line of a cell follows in brackets."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    def text(cell: Cell | str) -> str:
        cell = Cell(cell) if isinstance(cell, str) else cell
        detail = f" {cell.detail}" if cell.detail.startswith("[") else f" ({cell.detail})" if cell.detail else ""
        return f"{cell.text}{detail}".replace("|", "\\|")

    head = ["| " + " | ".join(table.columns) + " |", "|---" + "|---:" * (len(table.columns) - 1) + "|"]
    rows = ["| " + " | ".join(map(text, row)) + " |" for row in table.rows]
    return "\n".join([f"### {table.title}", "", *head, *rows, "", table.note, ""])
