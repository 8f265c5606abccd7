"""What the cells of an ablation came to: scores, items, cost, failures. No torch in here.

Shape letters: S seeds, I items.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from divot_lightning.errors import UserError
from divot_lightning.evaluation.predictions import MERGED, read_rows
from divot_lightning.evaluation.protocol import differing
from divot_lightning.evaluation.scores import Score, load_scores
from divot_lightning.evaluation.statistics.paired_difference import Values
from divot_lightning.experiments.ablation.grid import Cell, CellStep, Grid
from divot_lightning.experiments.runner.records import StepRecord, read_record
from divot_lightning.training.run_folder import FINISHED

_VALID_ONLY = re.compile(r"\bvalid (clips|ones)\b")
SEED_KEYS = ("noise_seed", "seed")
"""Entries of a protocol that follow the seed of a cell; all else has to be the same in all cells."""


@dataclass(frozen=True)
class CellResult:
    """What one cell came to.

    Attributes:
        cell: The cell.
        scores: Its scores by name; empty if it failed or is not done.
        items: By score name, one value per clip, caption or question, where the measurement keeps them; NaN for one
            that the score does not count, such as a video that cannot be read.
        failure: Which step failed and what it said; "" if none did.
        seconds: Time of the training steps that no other cell shares, without what their processes need to begin.
        peak_mib: Largest resident memory of these.
        peak_gpu_mib: Largest memory of their tensors on a GPU; 0 without one.
        parameters: Parameters of the components that these trained.
    """

    cell: Cell
    scores: Mapping[str, Score] = field(default_factory=dict)
    items: Mapping[str, Sequence[float]] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    peak_gpu_mib: float = 0.0
    parameters: int = 0


def collect(grid: Grid, folder: Path, *, mixed_protocols: bool = False) -> list[CellResult]:
    """Read what is there of all cells.

    Args:
        grid: The cells.
        folder: Of the ablation.
        mixed_protocols: Whether scores may have been measured in different ways.

    Raises:
        UserError: They were, and may not.
    """
    results = [_collect_cell(cell, grid.steps[cell.name], folder) for cell in grid.cells]
    mixed = {} if mixed_protocols else protocol_differences(results)
    for name, different in mixed.items():
        raise UserError(
            f"{name} was not measured in one way in all cells, what differs: {', '.join(different)[:300]}.\n"
            "Scores of different protocols do not go into one table; to see them nevertheless: --mixed-protocols"
        )
    return results


def _collect_cell(cell: Cell, steps: Mapping[str, CellStep], folder: Path) -> CellResult:
    failure, missing = _failure(steps, folder)
    result = CellResult(cell, failure=failure)
    for own in (step for step in steps.values() if step.step.run is not None and not step.shared):
        record = read_record(folder, own.step.name)
        if record is not None:
            finished = _read_finished(own.folder)
            result = replace(
                result,
                seconds=result.seconds + _training_seconds(finished, record),
                peak_mib=max(result.peak_mib, record.peak_mib),
                peak_gpu_mib=max(result.peak_gpu_mib, finished.get("peak_gpu_mib", 0.0)),
                parameters=result.parameters + num_parameters(own.folder),
            )
    if failure or missing:
        return result
    scores: dict[str, Score] = {}
    items: dict[str, Sequence[float]] = {}
    for step in steps.values():
        for path in sorted(step.folder.rglob("scores.json")) if step.step.run is None else ():
            scores |= {score.name: score for score in load_scores(path)}
            items |= _read_items(path.parent)
    return replace(result, scores=scores, items=items)


def _read_finished(run: Path) -> dict[str, Any]:
    path = run / FINISHED
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _training_seconds(finished: Mapping[str, Any], record: StepRecord) -> float:
    """Return how long a run trained; of one that was stopped, what its last steps say of all of them."""
    seconds, steps = finished.get("seconds_since_start_or_resume"), finished.get("steps", 0)
    since = finished.get("steps_since_start_or_resume", steps if record.attempts == 1 else 0)
    if seconds is None or (steps and not since):
        return record.seconds
    return float(seconds) * steps / since if since else float(seconds)


def _read_items(folder: Path) -> dict[str, list[float]]:
    """Read the value of every item: of a toy measurement, or of the predictions of `divot evaluate`."""
    if (folder / "items.json").is_file():
        found: dict[str, list[float]] = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        return found
    if not (folder / MERGED).is_file():
        return {}
    rows = [row.get("scores", {}) for row in read_rows(folder / MERGED)]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [float(row.get(name, math.nan)) for row in rows] for name in names}


def _failure(steps: Mapping[str, CellStep], folder: Path) -> tuple[str, bool]:
    """Return what the first failed step said, and whether a step is not done."""
    missing = False
    for name, step in steps.items():
        record = read_record(folder, step.step.name)
        if record is not None and record.failure:
            return f"{name}: {record.failure.splitlines()[1]}", True
        missing = missing or record is None or not record.done
    return "", missing


def num_parameters(run: Path) -> int:
    """Count the values in the safetensors files of a run's components, from their headers alone."""
    total = 0
    for path in run.glob("[!.]*/model.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        total += sum(math.prod(shape) for shape in shapes)
    return total


def protocol_differences(results: Sequence[CellResult]) -> dict[str, list[str]]:
    """Find scores that were not measured in one way in all cells.

    Returns:
        By score what differs, as dotted names; nothing for scores that compare.
    """
    protocols: dict[str, list[dict[str, object]]] = {}
    for result in results:
        for name, score in result.scores.items():
            protocols.setdefault(name, []).append({**score.protocol, "count": _fixed_count(score)})
    found = {name: [key for key in differing(each) if not _follows_seed(key)] for name, each in protocols.items()}
    return {name: keys for name, keys in found.items() if keys}


def _follows_seed(key: str) -> bool:
    return key.rpartition(".")[2] in SEED_KEYS


def _fixed_count(score: Score) -> object:
    # Scores over valid clips only count another number in each cell, by their own rule.
    return "valid" if any(_VALID_ONLY.search(str(value)) for value in score.protocol.values()) else score.count


def by_group(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Return the results of all seeds by combination of variants, in the order of the recipe."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        groups.setdefault(result.cell.group, []).append(result)
    return groups


def paired_values(
    score: str, ours: Sequence[CellResult], others: Sequence[CellResult], *, items: bool = True
) -> tuple[Values, Values] | None:
    """Return the values of two groups on the seeds and items that both have, (S, I) each; I is 1 without items.

    Args:
        score: Its name.
        ours: Results of one group.
        others: Results of the other.
        items: Whether to take the values of items, where there are any, instead of the seeds' scores.

    Returns:
        Both, or None if they have no seed in common.
    """
    pairs = [(a, b) for a in ours for b in others if a.cell.seed == b.cell.seed]
    pairs = [(a, b) for a, b in pairs if score in a.scores and score in b.scores]
    if not pairs:
        return None
    rows = [(_values(score, a), _values(score, b)) for a, b in pairs]
    if not items or len({len(row) for pair in rows for row in pair}) > 1:
        rows = [([a.scores[score].value], [b.scores[score].value]) for a, b in pairs]
    pair = np.array([a for a, _ in rows], dtype=float), np.array([b for _, b in rows], dtype=float)
    counted = np.isfinite(pair).all(axis=(0, 1))
    return (pair[0][:, counted], pair[1][:, counted]) if counted.any() else pair


def _values(score: str, result: CellResult) -> list[float]:
    return list(result.items.get(score) or [result.scores[score].value])
