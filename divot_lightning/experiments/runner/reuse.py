"""Steps that another experiment has done: the same tokenizer need not be trained for each ablation."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.grid import Grid, TrialStep
from divot_lightning.experiments.runner.records import StepRecord, is_done, recipe_sha256


def require_experiments(folders: Iterable[Path]) -> None:
    """Refuse a folder that holds no experiment.

    Raises:
        UserError: One of them holds none.
    """
    for folder in folders:
        if not (folder / "recipe.yaml").is_file():
            raise UserError(f"--reuse {folder} holds no experiment; give the --folder of one")


def link_done_steps(grid: Grid, folder: Path, others: Sequence[Path]) -> list[str]:
    """Link the shared steps that other experiments have done into an experiment, instead of running them again.

    A step is the same if its name, its settings and the steps that it reads are: all of it is in the hash at the end of
    its folder's name. Its recipe must not have changed since. The version of the code does not count.

    Args:
        grid: The plan of the experiment.
        folder: Its folder.
        others: Folders of other experiments; the first that has a step gives it.

    Returns:
        The names of the steps that are linked now.
    """
    shared = {each.step.name: each for steps in grid.steps.values() for each in steps.values() if each.shared}
    missing = [step for name, step in shared.items() if not is_done(folder, name) and not step.folder.exists()]
    return [step.step.name for step in missing if any(_link(step, folder, other) for other in others)]


def _link(step: TrialStep, folder: Path, other: Path) -> bool:
    record = StepRecord.read(other, step.step.name)
    source = other / step.folder.relative_to(folder)
    if record is None or not record.done or not source.is_dir():
        return False
    if record.recipe_sha256 not in ("", recipe_sha256(step.step.command)):
        return False  # the recipe has changed since
    step.folder.parent.mkdir(parents=True, exist_ok=True)
    step.folder.symlink_to(os.path.relpath(source.resolve(), step.folder.parent.resolve()), target_is_directory=True)
    (folder / "steps").mkdir(exist_ok=True)
    replace(record, command=step.step.command).write(folder)
    return True
