"""An ablation's report page: tables, all cells' curves in one picture, samples side by side. No torch in here."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divot_lightning.evaluation.scores import load_scores
from divot_lightning.experiments.ablation.grid import Cell, Grid
from divot_lightning.experiments.ablation.recipe import AblationRecipe
from divot_lightning.experiments.ablation.results import CellResult
from divot_lightning.experiments.ablation.tables import (
    failure_table,
    reference_tables,
    result_table,
)
from divot_lightning.experiments.report.conditions import describe_machine
from divot_lightning.experiments.report.content import Chart, Line, Picture, PictureRow, Report, Table
from divot_lightning.experiments.report.numbers import read_curve
from divot_lightning.experiments.report.pictures import side_by_side

SHOWN_PROMPTS = 6


def all_tables(recipe: AblationRecipe, results: Sequence[CellResult]) -> list[Table]:
    """Return the tables in the order of the report."""
    failures = failure_table(results)
    return [result_table(recipe, results), *([failures] if failures else []), *reference_tables(recipe)]


def build_report(
    recipe: AblationRecipe,
    grid: Grid,
    results: Sequence[CellResult],
    conditions: Sequence[tuple[str, str]] = (),
) -> Report:
    """Put the report together.

    Args:
        recipe: The ablation.
        grid: Its cells and their folders.
        results: What they came to.
        conditions: More facts, as (name, value).
    """
    return Report(
        title=f"Ablation: {recipe.title}",
        introduction=recipe.question,
        tables=all_tables(recipe, results),
        reconstructions=_pictures(grid, results, "reconstruction"),
        generations=_pictures(grid, results, "generation"),
        charts=_charts(recipe, grid),
        conditions=[*describe_machine(), *conditions],
        notes=_notes(recipe, results),
    )


def _charts(recipe: AblationRecipe, grid: Grid) -> list[Chart]:
    charts = []
    for step, columns in recipe.curves.items():
        for column in columns:
            drawn = [line for line in _curves(recipe, grid, step, column) if line.x]
            positive = all(value > 0 for line in drawn for value in line.y)
            if drawn:
                charts.append(Chart(f"{step}: {column}", drawn, logarithmic=positive))
    return charts


def _curves(recipe: AblationRecipe, grid: Grid, step: str, column: str) -> list[Line]:
    """Read a curve of every cell: a combination has one colour, its seeds differ in their dashes."""
    groups = list(dict.fromkeys(cell.group for cell in grid.cells))
    curves = []
    for cell in grid.cells:
        line = read_curve(grid.steps[cell.name][step].folder, column, cell.name)
        curves.append(replace(line, colour=groups.index(cell.group), dashes=recipe.seeds.index(cell.seed)))
    return curves


def _pictures(grid: Grid, results: Sequence[CellResult], kind: str) -> list[PictureRow]:
    """Return for the first prompts the clips of all combinations, each made with the first seed.

    Combinations that share the model that made them have one picture.
    """
    done = [result.cell for result in results if result.scores and result.cell.seed == results[0].cell.seed]
    groups: dict[Path, list[str]] = {}
    for cell in done:
        for folder in _folders_of_clips(grid, cell, kind):
            groups.setdefault(folder, []).append(cell.group)
    labels = {
        folder: "all" if len(done) > 1 and len(of) == len(done) else ", ".join(of) for folder, of in groups.items()
    }
    made = {labels[folder]: _clips(folder) for folder in groups}
    rates = {labels[folder]: _frames_per_second(folder) for folder in groups}
    if not made:
        return []
    first_texts = next(iter(made.values()))[1]
    rows = []
    for at in range(min(SHOWN_PROMPTS, len(first_texts))):
        pictures = [
            Picture(clips[at], label, texts[at].get("right"), rates[label]) for label, (clips, texts) in made.items()
        ]
        rows.append(PictureRow(first_texts[at]["caption"], pictures))
    return rows


def _folders_of_clips(grid: Grid, cell: Cell, kind: str) -> list[Path]:
    """Return the folder of a cell's clips, if it has one."""
    folders = [step.folder / kind for step in grid.steps[cell.name].values()]
    return [folder for folder in folders if (folder / "clips.npz").is_file()][:1]


def _clips(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    with np.load(folder / "clips.npz") as arrays:
        clips = arrays["made"][:SHOWN_PROMPTS]
        if "original" in arrays:
            clips = [side_by_side(pair) for pair in zip(arrays["original"], clips, strict=False)]
    return clips, texts


def _frames_per_second(folder: Path) -> float:
    """Return the rate that the clips of a measurement were cut at, which its scores state."""
    scores = load_scores(folder / "scores.json") if (folder / "scores.json").is_file() else []
    stated = [score.protocol["clips"]["fps"] for score in scores if "fps" in (score.protocol.get("clips") or {})]
    return float(stated[0]) if stated else Picture.frames_per_second


def _notes(recipe: AblationRecipe, results: Sequence[CellResult]) -> list[str]:
    unfinished = [result.cell.name for result in results if not result.scores]
    notes = [
        "Every cell is an ordinary run: its folder holds config.yaml, and `divot fit --config CELL/config.yaml --run "
        "ANOTHER_FOLDER` trains it again alone.",
        f"Seeds: {', '.join(map(str, recipe.seeds))}. A range over few seeds is no confidence interval.",
    ]
    if unfinished:
        notes.append(f"Not done or failed: {', '.join(unfinished)}. The same command continues with what is missing.")
    if recipe.reference:
        notes.append("Published tables stand beside ours for orientation: other data, models and metrics.")
    return notes


def table_page(recipe: AblationRecipe, conditions: Sequence[tuple[str, str]]) -> str:
    """Return the head of the Markdown results: title, question, what they were obtained on."""
    facts = "\n".join(f"- {name}: {value}" for name, value in [*describe_machine(), *conditions])
    return f"## {recipe.title}\n\n{recipe.question}\n\n{facts}\n"


def write_text(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete."""
    # Cells that run at one time write the same results: each under a name of its own until it is complete.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
