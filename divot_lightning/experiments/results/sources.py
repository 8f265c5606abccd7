"""Find the folders that a report reads: those of a measurement, in all trials or in one group. No torch in here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from divot_lightning.evaluation import predictions
from divot_lightning.evaluation.scores import SCORES, Score, load_scores
from divot_lightning.experiments.plan.grid import Grid
from divot_lightning.experiments.report.content import Picture, Pixels
from divot_lightning.io.renamed import ENTRIES

GROUP = "{group}"
"""Stands in labels for a combination of variants."""


def groups_of(grid: Grid) -> list[str]:
    """Return the combinations of variants, in the order of the recipe."""
    return list(dict.fromkeys(trial.group for trial in grid.trials))


def folders_of(grid: Grid, source: str, group: str | None = None) -> list[Path]:
    """Return the folders of a measurement, each once, those of the first seed first.

    Args:
        grid: The trials.
        source: The measurement.
        group: A combination of variants; None for all trials.
    """
    trials = [trial for trial in grid.trials if group in (None, trial.group)]
    steps = (step for trial in trials for step in grid.steps[trial.name].values())
    return list(dict.fromkeys(step.sources[source] for step in steps if source in step.sources))


def labelled_folders(grid: Grid, sources: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return the folders of measurements by label; `{group}` in a label gives a label to each combination."""
    found = {}
    for label, source in sources.items():
        for group in groups_of(grid) if GROUP in label else [None]:
            if folders := folders_of(grid, source, group):
                found[label.replace(GROUP, group or "")] = folders
    return found


def measured_scores(folder: Path) -> dict[str, Score]:
    """Return the scores of a measurement by name; none if it is not done."""
    return {score.name: score for path in sorted(folder.rglob(SCORES)) for score in load_scores(path)}


def read_kept_clips(folder: Path) -> tuple[Mapping[str, Pixels], list[dict[str, Any]]] | None:
    """Return the clips of a measurement by kind, uint8 (N, F, 3, H, W), and their texts; None if it keeps none."""
    path = next(iter(sorted(folder.rglob("clips.npz"))), None)
    if path is None:
        return None
    with np.load(path) as arrays:
        clips = {ENTRIES.get(name, name): arrays[name] for name in arrays.files}
    return clips, json.loads((path.parent / "texts.json").read_text(encoding="utf-8"))


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """Return the predictions of `divot evaluate`; none if it is not done."""
    path = folder / predictions.MERGED
    return predictions.read_predictions(path) if path.is_file() else []


def frames_per_second(folder: Path) -> float:
    """Return the frame rate of the clips of a measurement, as its scores state it."""
    cuts = [score.protocol.get("clips") or {} for score in measured_scores(folder).values()]
    return next((float(cut["fps"]) for cut in cuts if "fps" in cut), Picture.frames_per_second)
