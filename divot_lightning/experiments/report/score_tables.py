"""Build the tables that a recipe wants in the report, and the targets at its top. No torch in here."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from divot_lightning.evaluation.scores import Score
from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.plan.report_recipe import TableRecipe
from divot_lightning.experiments.report.content import Cell, Headline, Table
from divot_lightning.experiments.report.numbers import number, spread_of
from divot_lightning.experiments.results.sources import labelled_folders, measured_scores

Scores = Mapping[str, Sequence[Mapping[str, Score]]]
"""The scores of each seed by name, by label of the measurement."""


def measured(table: TableRecipe, grid: Grid) -> Scores:
    """Read the scores of a table; each also has its name without the benchmark, which sources can have in common."""
    found = {}
    for label, folders in labelled_folders(grid, table.sources).items():
        of_seeds = [scores for folder in folders if (scores := measured_scores(folder))]
        found[label] = [{**{name.partition("/")[2]: s for name, s in each.items()}, **each} for each in of_seeds]
    return found


def _values(scores: Sequence[Mapping[str, Score]], name: str) -> list[float]:
    return [of_seed[name].value for of_seed in scores if name in of_seed]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _cell(scores: Sequence[Mapping[str, Score]], name: str, target: float | None) -> Cell:
    values, mean = _values(scores, name), _mean(_values(scores, name))
    good = None if target is None or math.isnan(mean) else mean >= target
    return Cell(number(mean), good, spread_of(values) if len(values) > 1 and not math.isnan(mean) else "")


def score_table(table: TableRecipe, scores: Scores) -> Table:
    """Return a table: means, and below them the range over seeds. Values of the headline's source show the target.

    Args:
        table: What the recipe wants.
        scores: As `measured` returns them.
    """
    graded = _graded(table, scores)
    cells = {
        label: [_cell(each, name, table.targets.get(name) if label in graded else None) for name in table.scores]
        for label, each in scores.items()
    }
    targets = [f">= {table.targets[name]:g}" if name in table.targets else "" for name in table.scores]
    columns: dict[str, Sequence[Cell | str]] = cells | ({"target": targets} if table.targets else {})
    note = f"{table.note} {_seed_note(scores)}".strip()
    if not table.scores_as_rows:
        rows = [[label, *values] for label, values in columns.items()]
        return Table(table.title, ["", *table.scores.values()], rows, note)
    rows = [[label, *values] for label, *values in zip(table.scores.values(), *columns.values(), strict=True)]
    return Table(table.title, ["", *columns], rows, note)


def _graded(table: TableRecipe, scores: Scores) -> set[str]:
    """Return the labels whose values are compared with the targets: the headline, and all that its entry stands for."""
    if not table.headline:
        return set(scores)
    return {table.headline} if table.headline in table.sources else set(scores) - set(table.sources)


def _seed_note(scores: Scores) -> str:
    most = max(map(len, scores.values()), default=0)
    return f"Mean over {most} training seeds, below it smallest to largest." if most > 1 else ""


def headlines(table: TableRecipe, scores: Scores) -> list[Headline]:
    """Return the targets of a table and whether its headline's source meets them."""
    found = []
    for name, target in table.targets.items() if scores.get(table.headline) else ():
        value = _mean(_values(scores[table.headline], name))
        label = f"{table.title.lower()}: {table.scores[name]}"
        found.append(Headline(label, f"{value:.0%}", f">= {target:.0%}", value >= target))
    return found
