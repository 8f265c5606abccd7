"""Build the moving pictures, the answers and the loss curves of a report. No torch in here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from divot_datamodules.decoding.video_writing import side_by_side
from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.plan.report_recipe import AnswersRecipe, ChartRecipe, PicturesRecipe
from divot_lightning.experiments.report.content import Answered, Chart, Line, Picture, PictureRow, Pixels
from divot_lightning.experiments.report.numbers import read_curve
from divot_lightning.experiments.results.sources import (
    GROUP,
    folders_of,
    frames_per_second,
    groups_of,
    labelled_folders,
    read_kept_clips,
    read_predictions,
)

Clips: TypeAlias = tuple[list[dict[str, Any]], list[Picture]]
"""Texts and pictures of a measurement."""


def default_pictures(grid: Grid, *, reconstructed: bool) -> PicturesRecipe:
    """Return all measurements that keep clips: reconstructions have originals beside them, other clips have none."""
    names = dict.fromkeys(name for steps in grid.steps.values() for step in steps.values() for name in step.sources)
    kept = {name: next(filter(None, map(read_kept_clips, folders_of(grid, name))), None) for name in names}
    sources = [name for name, clips in kept.items() if clips and ("original" in clips[0]) == reconstructed]
    return PicturesRecipe({GROUP if len(sources) == 1 else f"{name}, {GROUP}": name for name in sources})


def picture_rows(pictures: PicturesRecipe, grid: Grid) -> list[PictureRow]:
    """Return a row for each of the first prompts, with a clip of each measurement and combination, with the first seed.

    Combinations that share one measurement have one picture; measurements with other prompts have rows of their own.
    Reconstructions are shown beside their originals. If the recipe asks for it, more rows show the most frequent prompt
    several times.
    """
    first = {label: folders[0] for label, folders in labelled_folders(grid, pictures.sources).items()}
    by_prompts: dict[tuple[str, ...], dict[str, Clips]] = {}
    for label, folder in _joined(first, grid).items():
        if clips := _clips(folder, label):
            by_prompts.setdefault(tuple(text["caption"] for text in clips[0]), {})[label] = clips
    return [row for found in by_prompts.values() for row in _rows(pictures, grid, found)]


def _rows(pictures: PicturesRecipe, grid: Grid, found: dict[str, Clips]) -> list[PictureRow]:
    """Return the rows of measurements with the same prompts."""
    texts = next(iter(found.values()))[0]
    real, rows = _originals(pictures, grid), []
    for at in range(min(pictures.shown, len(texts))):
        row = [Picture(real[at], "a real clip")] if at < len(real) else []
        row += [clips[at] for _, clips in found.values() if at < len(clips)]
        rows.append(PictureRow(texts[at]["caption"], row))
    if pictures.repeated:
        rows += _repeated(texts, found, real, pictures.repeated)
    return rows


def _originals(pictures: PicturesRecipe, grid: Grid) -> Sequence[Pixels]:
    """Return the originals that a recipe wants beside the clips; there may be fewer than clips, or none."""
    kept = read_kept_clips(folders_of(grid, pictures.originals)[0]) if pictures.originals else None
    return list(kept[0].get("original", ())) if kept else []


def _joined(folders: dict[str, Path], grid: Grid) -> dict[str, Path]:
    """Give labels that share a folder one common label."""
    labels: dict[Path, list[str]] = {}
    for label, folder in folders.items():
        labels.setdefault(folder, []).append(label)
    everywhere = len(groups_of(grid)) > 1 and len(labels) == 1 and len(folders) > 1
    return {"all" if everywhere else ", ".join(of): folder for folder, of in labels.items()}


def _clips(folder: Path, label: str) -> Clips | None:
    """Return the texts and the pictures of a measurement, reconstructions beside their originals."""
    if (found := read_kept_clips(folder)) is None:
        return None
    clips, texts = found
    videos = list(clips["generated"])
    if "original" in clips:
        videos = [side_by_side(*pair) for pair in zip(clips["original"], videos, strict=True)]
    rate = frames_per_second(folder)
    pairs = zip(videos, texts, strict=False)
    return texts, [Picture(video, label, text.get("right"), rate) for video, text in pairs]


def _repeated(
    texts: Sequence[dict[str, Any]], found: dict[str, Clips], real: Sequence[Pixels], times: int
) -> list[PictureRow]:
    captions = [text["caption"] for text in texts]
    common = Counter(captions).most_common(1)[0][0]
    at = [index for index, caption in enumerate(captions) if caption == common][:times]
    shown = [Picture(real[index]) for index in at if index < len(real)]
    rows = [PictureRow(f"real: {common}", shown)] if shown else []
    for label, (_, clips) in found.items():
        shown = [replace(clips[index], label="") for index in at if index < len(clips)]
        rows.append(PictureRow(f"{label}: the same prompt {len(shown)} times", shown))
    return rows


def answered_clips(answers: AnswersRecipe, grid: Grid) -> list[Answered]:
    """Return clips with captions and answers of the baseline's first seed."""
    group = grid.baseline or groups_of(grid)[0]
    found = {name: folders_of(grid, name, group) for name in (answers.originals, answers.captions, answers.questions)}
    kept = read_kept_clips(found[answers.originals][0]) if found[answers.originals] else None
    if kept is None or "original" not in kept[0]:
        return []
    rows = [
        row
        for name in (answers.captions, answers.questions)
        for each in found[name][:1]
        for row in read_predictions(each)
    ]
    shown = []
    for video, text in list(zip(kept[0]["original"], kept[1], strict=True))[: answers.shown]:
        known = [
            (row.get("question", "caption"), row.get("target", text["caption"]), row.get("prediction", ""))
            for row in rows
            if row["media"] == text["media"]
        ]
        shown.append(Answered(video, [(prompt, target, answer, target == answer) for prompt, target, answer in known]))
    return shown


def charts(recipe: ChartRecipe, grid: Grid) -> list[Chart]:
    """Return the charts of an entry, without curves that have no point; logarithmic if all values are positive."""
    groups = groups_of(grid) if recipe.per_group else [None]
    drawn = [(group, [line for line in _lines(recipe, grid, group) if line.x]) for group in groups]
    return [
        Chart(recipe.title.replace(GROUP, group or ""), lines, logarithmic=min(min(line.y) for line in lines) > 0)
        for group, lines in drawn
        if lines
    ]


def _lines(recipe: ChartRecipe, grid: Grid, group: str | None) -> list[Line]:
    """Read the curves: those of a label and a combination, one for each seed, look alike and share a key."""
    colours: dict[tuple[str, str], int] = {}
    lines = []
    for label, (step, column) in recipe.lines.items():
        trials = [trial for trial in grid.trials if group in (None, trial.group) and step in grid.steps[trial.name]]
        first = {grid.steps[trial.name][step].folder: trial for trial in reversed(trials)}
        for folder, trial in reversed(first.items()):
            colour = colours.setdefault((label, trial.group), len(colours))
            name, of = (trial.name, trial.group) if len(first) > 1 else ("", "")
            line = read_curve(folder, column, ", ".join(filter(None, [name, label])) or step)
            lines.append(replace(line, colour=colour, key=", ".join(filter(None, [of, label]))))
    return lines
