"""What the steps of an experiment that has run have cost, for estimates of others. No torch in here."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from divot_lightning.experiments.plan.commands import DIVOT, MEASURE
from divot_lightning.experiments.plan.grid import TRIALS_FOLDER
from divot_lightning.experiments.results.trials import training_seconds
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.io.renamed import OLD_TRIALS
from divot_lightning.training.run_folder import read_finished

_SIZES = ("benchmark", "data", "limit")
"""Settings of a measurement that decide how long it takes."""


@dataclass(frozen=True)
class Rate:
    """What steps of a kind have cost.

    Attributes:
        seconds: Of an optimizer step, without the start of the process; of a whole step that does not train.
        mib: Size of the step's folder.
    """

    seconds: float
    mib: float


def measured_rates(folder: Path) -> dict[str, Rate]:
    """Return what steps have cost, by kind.

    Args:
        folder: Of an experiment; the steps that are done count.
    """
    found = [StepRecord.read(folder, path.stem) for path in sorted((folder / "steps").glob("*.json"))]
    records = [record for record in found if record and record.done]
    trained = {_run_of(record.command).name for record in records if _trains(record.command)}
    seconds, steps = defaultdict[str, float](float), defaultdict[str, int](int)
    sizes = defaultdict[str, list[float]](list)
    for record in records:
        kind, step_folder = kind_of(record.name, record.command, folder, trained), _folder_of(record, folder)
        finished = read_finished(step_folder) if _trains(record.command) else {"steps": 1}
        steps[kind] += finished.get("steps", 0)
        seconds[kind] += training_seconds(finished, record) if _trains(record.command) else record.seconds
        sizes[kind].append(size_mib(step_folder))
    return {kind: Rate(seconds[kind] / steps[kind], fmean(sizes[kind])) for kind in steps if steps[kind]}


def kind_of(name: str, command: Sequence[str], folder: Path, trained: Collection[str]) -> str:
    """Return what steps that cost about the same have in common.

    Of a training step it is the recipe; of measurements, benchmarks, data and limits; of other commands, the words
    without the names of trials, runs and seeds. Data have their hash in the name of their folder, so other data are
    another kind.

    Args:
        name: Of the step.
        command: Its command line.
        folder: Of the experiment.
        trained: Names of the folders of training steps.
    """
    if _trains(command):
        return recipe_of(command)
    words = list(command[1:])  # without the path of Python
    if tuple(command[: len(MEASURE)]) == MEASURE:
        words = [json.dumps([[e.get(key) for key in _SIZES] for e in json.loads(command[-1])])]
    text = " ".join(words).replace(f"{folder}/", "")
    text = re.sub(rf"({TRIALS_FOLDER}|{OLD_TRIALS})/[^/\s\"]+/|shared/", "", text)
    text = re.sub(r"seed \d+", "seed", text)
    for own in {*trained, name.removeprefix("shared.")}:
        text = text.replace(own, re.sub(r"-[0-9a-f]{8}$", "", own))
    return text


def _trains(command: Sequence[str]) -> bool:
    """Return whether a command is `divot fit`; measuring the cost of a step has the same options."""
    return command[len(DIVOT) :][:1] == ("fit",)


def _run_of(command: Sequence[str]) -> Path:
    return Path(command[command.index("--run") + 1])


def recipe_of(command: Sequence[str]) -> str:
    """Return the recipe of a training command."""
    return command[command.index("--config") + 1]


def _folder_of(record: StepRecord, folder: Path) -> Path:
    """Return the folder of a step, whose name is its path with dots."""
    if _trains(record.command):
        return _run_of(record.command)
    kind, _, rest = record.name.partition(".")
    trial, _, step = rest.rpartition(".") if kind in (TRIALS_FOLDER, OLD_TRIALS) else ("", "", rest)
    return folder.joinpath(*filter(None, [kind, trial, step]))


def size_mib(folder: Path) -> float:
    """Return the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
