"""The contents of a run folder, and checks of it. No torch, so that a wrong folder is refused at once.

A run folder:

- `config.yaml`: the resolved settings, written when the first step is done
- `metrics.csv`: one row per logged step; `tensorboard/`: the same for TensorBoard
- `checkpoints/`: folders `step_00000200` ..., see `divot_lightning.checkpoint.folder_writing`
- a folder per trained component, and `components.json`: the folders of the others
- `finished.json`: written when training reached its last step
- `stopped.json`: written when a signal stopped it, removed when it is resumed
- `data/`: indexes of the training data, and the edits of their order that `divot data skip` made
- `skipped/`: lists of the samples that could not be used
- `run.lock`: exists while a process trains
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from divot_datamodules.loading.skipped_samples import SKIPPED_FOLDER
from divot_datamodules.order.plan_edits import DATA_FOLDER
from divot_lightning.checkpoint.folders import checkpoint_step, newest_checkpoint
from divot_lightning.errors import UserError
from divot_lightning.io.jsonl import read_object
from divot_lightning.io.renamed import OLD_SKIPPED

CONFIG = "config.yaml"
METRICS = "metrics.csv"
TENSORBOARD = "tensorboard"
FINISHED = "finished.json"
LOCK = "run.lock"
STOPPED = "stopped.json"

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser in C, where it is installed: several times faster, and a run's config has hundreds of lines."""


def require_free(run: Path) -> None:
    """Refuse a folder that already holds something.

    Raises:
        UserError: `run` holds another run, or other files.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise UserError(f"--run {run} is a file; give a folder that does not exist yet.")
    leftovers = (SKIPPED_FOLDER, OLD_SKIPPED, DATA_FOLDER, LOCK, STOPPED)  # of a run that never took a step
    entries = sorted(path.name for path in run.iterdir() if path.name not in leftovers)
    if not entries:
        return
    shown = ", ".join(entries[:6]) + (", ..." if len(entries) > 6 else "")
    if (run / CONFIG).is_file():
        raise UserError(
            f"{run} already holds another run ({describe(run)}): {shown}\n"
            f"To continue with it: divot resume {run}\nTo start a new one: --run ANOTHER_FOLDER"
        )
    raise UserError(f"--run {run} is not empty and is no run: {shown}\nGive another folder: --run ANOTHER_FOLDER")


def forget_skipped(run: Path) -> None:
    """Remove the lists of skipped samples of an attempt that never took a step: the new run may read other data."""
    for name in (SKIPPED_FOLDER, OLD_SKIPPED):
        shutil.rmtree(run / name, ignore_errors=True)


def require_run(run: Path) -> None:
    """Refuse a folder that holds no run.

    Raises:
        UserError: `run` is missing or has no `config.yaml`.
    """
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}.\nTo start a run: divot fit --config RECIPE --run {run}")
    if not (run / CONFIG).is_file():
        raise UserError(
            f"{run} holds no run: it has no {CONFIG}.\nTo start a run: divot fit --config RECIPE --run ANOTHER_FOLDER"
        )


def read_data_config(run: str | Path) -> dict[str, Any]:
    """Return the data module's arguments of a run.

    Args:
        run: Run folder.

    Returns:
        The arguments; empty if the folder has no config, such as a folder of components alone.

    Raises:
        UserError: The config cannot be read.
    """
    file = Path(run) / CONFIG
    if not file.is_file():
        return {}
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), LOADER) or {}
        return dict(config.get("data", {}).get("init_args", {}))
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} cannot be read as the settings of a run ({type(error).__name__}).") from error


def where_paths_count(run: Path, settings: Mapping[str, Any], message: str) -> str:
    """Return a hint for a message about a missing relative path of a run's settings: the folder that it is relative to.

    Args:
        run: The run folder.
        settings: The content of its `config.yaml`.
        message: The message so far.

    Returns:
        One line; empty where the message names no missing relative path.
    """
    here, start = Path.cwd(), _start_folder(run, str(settings.get("run", "")))
    for path in _strings(settings):
        is_told = re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w/-])", message)
        if is_told and not Path(path).is_absolute() and not (here / path).exists():
            if start and (start / path).exists():
                return f"{path} is looked for from {here}; it is in {start}, where the run was started"
            if "/" in path:
                return f"{path} is looked for from the current folder, {here}"
    return ""


def _start_folder(run: Path, recorded: str) -> Path | None:
    """Return the folder from which the run is found under its recorded name."""
    parts, full = Path(recorded).parts, run.resolve().parts
    if not parts or Path(recorded).is_absolute() or full[-len(parts) :] != parts:
        return None
    return Path(*full[: -len(parts)])


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts in nested settings."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def read_finished(run: Path) -> dict[str, Any]:
    """Return what a run wrote at its end, such as its `steps`; nothing if it has not ended."""
    return read_object(run / FINISHED) if (run / FINISHED).is_file() else {}


def describe(run: Path) -> str:
    """Return the state of a run in a few words."""
    if (run / FINISHED).is_file():
        return "finished"
    newest = newest_checkpoint(run)
    return f"stopped after step {checkpoint_step(newest)}" if newest else "stopped before its first checkpoint"
