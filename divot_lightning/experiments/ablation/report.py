"""Build the report page of an ablation: tables, the curves of all trials in one chart, samples side by side.

No torch in here.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divot_lightning.evaluation.scores import load_scores
from divot_lightning.experiments.ablation.grid import Grid, Trial
from divot_lightning.experiments.ablation.recipe import AblationRecipe
from divot_lightning.experiments.ablation.results import TrialResult
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


def all_tables(recipe: AblationRecipe, results: Sequence[TrialResult]) -> list[Table]:
    """Return the tables in the order of the report."""
    failures = failure_table(results)
    return [result_table(recipe, results), *([failures] if failures else []), *reference_tables(recipe)]


def build_report(
    recipe: AblationRecipe,
    grid: Grid,
    results: Sequence[TrialResult],
    conditions: Sequence[tuple[str, str]] = (),
) -> Report:
    """Build the report.

    Args:
        recipe: The ablation.
        grid: Its trials and their folders.
        results: Their results.
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
    """Read a curve of every trial: a combination has one colour, and its seeds have different dashes."""
    groups = list(dict.fromkeys(trial.group for trial in grid.trials))
    curves = []
    for trial in grid.trials:
        line = read_curve(grid.steps[trial.name][step].folder, column, trial.name)
        curves.append(replace(line, colour=groups.index(trial.group), dashes=recipe.seeds.index(trial.seed)))
    return curves


def _pictures(grid: Grid, results: Sequence[TrialResult], kind: str) -> list[PictureRow]:
    """Return, for the first prompts, the clips of all combinations with the first seed.

    Combinations that share one model have one picture.
    """
    done = [result.trial for result in results if result.scores and result.trial.seed == results[0].trial.seed]
    groups: dict[Path, list[str]] = {}
    for trial in done:
        for folder in _folders_of_clips(grid, trial, kind):
            groups.setdefault(folder, []).append(trial.group)
    labels = {
        folder: "all" if len(done) > 1 and len(of) == len(done) else ", ".join(of) for folder, of in groups.items()
    }
    generated = {labels[folder]: _clips(folder) for folder in groups}
    rates = {labels[folder]: _frames_per_second(folder) for folder in groups}
    if not generated:
        return []
    first_texts = next(iter(generated.values()))[1]
    rows = []
    for at in range(min(SHOWN_PROMPTS, len(first_texts))):
        pictures = [
            Picture(clips[at], label, texts[at].get("right"), rates[label])
            for label, (clips, texts) in generated.items()
        ]
        rows.append(PictureRow(first_texts[at]["caption"], pictures))
    return rows


def _folders_of_clips(grid: Grid, trial: Trial, kind: str) -> list[Path]:
    """Return the folder of a trial's clips, if it has one."""
    folders = [step.folder / kind for step in grid.steps[trial.name].values()]
    return [folder for folder in folders if (folder / "clips.npz").is_file()][:1]


def _clips(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    with np.load(folder / "clips.npz") as arrays:
        clips = arrays["made"][:SHOWN_PROMPTS]
        if "original" in arrays:
            clips = [side_by_side(pair) for pair in zip(arrays["original"], clips, strict=False)]
    return clips, texts


def _frames_per_second(folder: Path) -> float:
    """Return the frame rate of the clips of a measurement, as its scores state it."""
    scores = load_scores(folder / "scores.json") if (folder / "scores.json").is_file() else []
    stated = [score.protocol["clips"]["fps"] for score in scores if "fps" in (score.protocol.get("clips") or {})]
    return float(stated[0]) if stated else Picture.frames_per_second


def _notes(recipe: AblationRecipe, results: Sequence[TrialResult]) -> list[str]:
    unfinished = [result.trial.name for result in results if not result.scores]
    notes = [
        "Every trial is an ordinary run: its folder holds config.yaml, and `divot fit --config TRIAL/config.yaml --run "
        "ANOTHER_FOLDER` trains it alone again.",
        f"Seeds: {', '.join(map(str, recipe.seeds))}. A range over few seeds is no confidence interval.",
    ]
    if unfinished:
        notes.append(f"Not done or failed: {', '.join(unfinished)}. The same command continues with what is missing.")
    if recipe.reference:
        notes.append("Published tables are shown for orientation only: their data, models and metrics are others.")
    return notes


def table_page(recipe: AblationRecipe, conditions: Sequence[tuple[str, str]]) -> str:
    """Return the head of the Markdown results: title, question, machine and other conditions."""
    facts = "\n".join(f"- {name}: {value}" for name, value in [*describe_machine(), *conditions])
    return f"## {recipe.title}\n\n{recipe.question}\n\n{facts}\n"
