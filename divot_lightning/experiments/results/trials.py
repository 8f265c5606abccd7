"""Read the results of the trials of an experiment: scores, items, cost, failures. No torch in here.

Shape letters: S seeds, I items, T trials.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from divot_lightning.errors import UserError
from divot_lightning.evaluation.protocol import differing_protocols
from divot_lightning.evaluation.scores import SCORES, Score
from divot_lightning.evaluation.statistics.comparison import load_evaluation, shared_values
from divot_lightning.evaluation.statistics.paired_difference import Values
from divot_lightning.experiments.plan.grid import Grid, TrialStep
from divot_lightning.experiments.plan.trials import Trial
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.training.run_folder import read_finished

SEED_KEY = "seed"
"""Entry of a protocol that follows the seed of a trial; all other entries must be the same in all trials."""


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial.

    Attributes:
        trial: The trial.
        scores: Its scores by key, the measurement and the name of the score with a colon between; empty if it failed or
            is not done.
        items: By key, the value of each clip, caption or question by its name, where a score has such; without those
            that it does not count, such as a video that cannot be read.
        failure: Which step failed, and the last line of its error; "" if none did.
        seconds: Time of the training steps that no other trial shares, without the start of their processes.
        peak_mib: Largest resident memory of these steps.
        peak_gpu_mib: Largest memory of their tensors on a GPU; 0 without a GPU.
        parameters: Number of parameters of the components that these steps trained.
    """

    trial: Trial
    scores: Mapping[str, Score] = field(default_factory=dict)
    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    peak_gpu_mib: float = 0.0
    parameters: int = 0


def collect(grid: Grid, folder: Path, *, mixed_protocols: bool = False) -> list[TrialResult]:
    """Read the results of all trials, as far as they are done.

    Args:
        grid: The trials.
        folder: Of the experiment.
        mixed_protocols: Whether scores of different protocols are allowed.

    Raises:
        UserError: Protocols of a score differ, and this is not allowed.
    """
    results = [_collect_trial(trial, grid.steps[trial.name], folder) for trial in grid.trials]
    mixed = {} if mixed_protocols else protocol_differences(results)
    for name, different in mixed.items():
        raise UserError(
            f"{name} was not measured with the same protocol in all trials; different: {', '.join(different)[:300]}.\n"
            "Scores of different protocols do not go into one table; to show them nevertheless: --mixed-protocols"
        )
    return results


def _collect_trial(trial: Trial, steps: Mapping[str, TrialStep], folder: Path) -> TrialResult:
    failure, missing = _failure(steps, folder)
    result = TrialResult(trial, failure=failure)
    for own in (step for step in steps.values() if step.step.run is not None and not step.shared):
        record = StepRecord.read(folder, own.step.name)
        if record is not None:
            finished = read_finished(own.folder)
            result = replace(
                result,
                seconds=result.seconds + training_seconds(finished, record),
                peak_mib=max(result.peak_mib, record.peak_mib),
                peak_gpu_mib=max(result.peak_gpu_mib, finished.get("peak_gpu_mib", 0.0)),
                parameters=result.parameters + num_parameters(own.folder),
            )
    if failure or missing:
        return result
    scores: dict[str, Score] = {}
    items: dict[str, Mapping[str, float]] = {}
    for source, evaluations in (pair for step in steps.values() for pair in step.sources.items()):
        for path in sorted(evaluations.rglob(SCORES)):
            evaluation = load_evaluation(path.parent)
            scores |= {f"{source}:{name}": score for name, score in evaluation.scores.items()}
            items |= {f"{source}:{name}": evaluation.values(name) for name in evaluation.scores}
    return replace(result, scores=scores, items=items)


def training_seconds(finished: Mapping[str, Any], record: StepRecord) -> float:
    """Return the seconds that a run trained; for a resumed run, extrapolated from the steps since the last start."""
    seconds, steps = finished.get("seconds_since_start_or_resume"), finished.get("steps", 0)
    since = finished.get("steps_since_start_or_resume", steps if record.attempts == 1 else 0)
    if seconds is None or (steps and not since):
        return record.seconds
    return float(seconds) * steps / since if since else float(seconds)


def _failure(steps: Mapping[str, TrialStep], folder: Path) -> tuple[str, bool]:
    """Return the error of the first failed step, and whether a step is not done."""
    missing = False
    for name, step in steps.items():
        record = StepRecord.read(folder, step.step.name)
        if record is not None and record.failure:
            return f"{name}: {record.reason}", True
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


def find_score(name: str, results: Sequence[TrialResult]) -> str:
    """Return the key of a score that a recipe names, alone or with its measurement, as `generation:generation/all`.

    Of several measurements with that score, the one that is called as the score begins is meant.

    Raises:
        UserError: No trial has it though trials are done, or several measurements have it.
    """
    keys = list(dict.fromkeys(key for result in results for key in result.scores))
    found = [key for key in keys if key == name or key.endswith(f":{name}")]
    if keys and not found:
        raise UserError(f"the recipe names a score that no trial has: {name}; there are {', '.join(keys)}")
    if len(found) > 1 and (named := f"{name.partition('/')[0]}:{name}") in found:
        return named
    if len(found) > 1:
        raise UserError(f"several measurements have the score {name}; name one: {', '.join(found)}")
    return found[0] if found else name


def protocol_differences(results: Sequence[TrialResult]) -> dict[str, list[str]]:
    """Find scores that were not measured with the same protocol in all trials.

    Returns:
        The differing entries by score, as dotted names; comparable scores are left out.
    """
    by_name: dict[str, list[Score]] = {}
    for result in results:
        for name, score in result.scores.items():
            by_name.setdefault(name, []).append(score)
    found = {name: list(differing_protocols(scores)) for name, scores in by_name.items()}
    fixed = {name: [key for key in keys if key.rpartition(".")[2] != SEED_KEY] for name, keys in found.items()}
    return {name: keys for name, keys in fixed.items() if keys}


def by_group(results: Sequence[TrialResult]) -> dict[str, list[TrialResult]]:
    """Return the results of all seeds by combination of variants, in the order of the recipe."""
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(result.trial.group, []).append(result)
    return groups


def paired_trials(
    score: str, ours: Sequence[TrialResult], others: Sequence[TrialResult], *, items: bool = True
) -> tuple[Values, Values] | None:
    """Return the values of two groups for the seeds and items that both have, (S, I) each; I is 1 without items.

    Args:
        score: Its name.
        ours: Results of one group.
        others: Results of the other.
        items: Whether to take the values of items, where there are any, instead of the seeds' scores.

    Returns:
        The values of both groups, or None if they have no seed in common.
    """
    pairs = [(a, b) for a in ours for b in others if a.trial.seed == b.trial.seed]
    pairs = [(a, b) for a, b in pairs if score in a.scores and score in b.scores]
    if not pairs:
        return None
    trials = [a for a, _ in pairs] + [b for _, b in pairs]
    values_TI = shared_values([trial.items.get(score, {}) for trial in trials])
    if not items or not values_TI.size:
        values_TI = np.array([[trial.scores[score].value] for trial in trials])
    return values_TI[: len(pairs)], values_TI[len(pairs) :]
