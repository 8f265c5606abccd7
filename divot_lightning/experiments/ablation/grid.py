"""Plan the trials of an ablation and their steps; a step that several trials need is done once. No torch in here."""

import hashlib
import itertools
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.experiments.ablation.recipe import AblationRecipe, PipelineStep
from divot_lightning.experiments.runner.steps import Step

DIVOT = (sys.executable, "-m", "divot_lightning")
MEASURE = (sys.executable, "-m", "divot_lightning.experiments.quickstart.measure")
TRIALS_FOLDER = "cells"
"""Folder of the trials on disk; the name is an old one, kept so that ablations that were begun before continue."""


@dataclass(frozen=True)
class Trial:
    """A trial: one combination of variants, with one seed.

    Attributes:
        variants: The variant of each axis.
        seed: Its seed.
    """

    variants: tuple[str, ...]
    seed: int

    @property
    def group(self) -> str:
        """Name of the combination; the trials of all its seeds share it."""
        return "-".join(self.variants)

    @property
    def name(self) -> str:
        """Name of the trial and of its folder.

        >>> Trial(("gmm", "causal"), 1).name
        'gmm-causal-seed1'
        """
        return f"{self.group}-seed{self.seed}"


@dataclass(frozen=True)
class TrialStep:
    """A step of a trial.

    Attributes:
        step: What to run.
        folder: The folder of its results.
        shared: Whether other trials use the same step.
    """

    step: Step
    folder: Path
    shared: bool


@dataclass(frozen=True)
class Grid:
    """All trials of an ablation and their steps.

    Attributes:
        trials: In the order of the recipe.
        steps: By trial name and pipeline step.
    """

    trials: tuple[Trial, ...]
    steps: Mapping[str, Mapping[str, TrialStep]]

    def all_steps(self) -> list[Step]:
        """Return every step once, ordered by its index in the pipeline: what many trials wait for starts early."""
        columns = itertools.zip_longest(*([s.step for s in self.steps[trial.name].values()] for trial in self.trials))
        every = [step for column in columns for step in column if step is not None]
        return list({step.name: step for step in every}.values())

    def shared_steps(self) -> list[Step]:
        """Return the steps that more than one trial needs."""
        shared = {s.step.name for steps in self.steps.values() for s in steps.values() if s.shared}
        return [step for step in self.all_steps() if step.name in shared]


def make_trials(recipe: AblationRecipe) -> tuple[Trial, ...]:
    """List all combinations of variants, each with every seed."""
    combinations = itertools.product(*recipe.vary.values())
    return tuple(Trial(variants, seed) for variants in combinations for seed in recipe.seeds)


def trial_options(recipe: AblationRecipe, trial: Trial) -> dict[str, dict[str, Any]]:
    """Return the options of each step in a trial: the pipeline's, then the variants', then the seed.

    In a variant, `fit` is not an option: it names another recipe for the step.

    Raises:
        UserError: Two axes change one option.
    """
    options: dict[str, dict[str, Any]] = {step.name: dict(step.options) for step in recipe.pipeline}
    changed: dict[tuple[str, str], str] = {}
    for axis, variant in zip(recipe.vary, trial.variants, strict=True):
        for step, changes in recipe.vary[axis][variant].items():
            for key, value in changes.items():
                other = changed.setdefault((step, key), axis)
                if other != axis:
                    raise UserError(f"the axes {other!r} and {axis!r} both change {key} of step {step!r}.")
                options[step][key] = value
    for step, keys in recipe.seed_options.items():
        options[step] |= dict.fromkeys(keys, trial.seed)
    return options


def make_grid(recipe: AblationRecipe, folder: Path, max_steps: Mapping[str, Mapping[str, int]] | None = None) -> Grid:
    """Plan all trials.

    A step's identity is a hash of everything that decides its result: its command, in which the folders of other steps
    are replaced by the identities of those steps. Steps with the same identity are one step.

    Args:
        recipe: The ablation.
        folder: Holds everything that the steps write: `shared/` and `cells/<trial>/`.
        max_steps: Training steps by trial name and pipeline step; a step that is not named trains as its recipe says.
    """
    trials = make_trials(recipe)
    options = {trial.name: trial_options(recipe, trial) for trial in trials}
    for name, steps in (max_steps or {}).items():
        for step, number in steps.items():
            options[name][step]["trainer.max_steps"] = number
    pipelines = {trial.name: _pipeline(recipe, options[trial.name]) for trial in trials}
    identities = {trial.name: _identities(pipelines[trial.name]) for trial in trials}
    uses = Counter(identity for of_trial in identities.values() for identity in of_trial.values())
    steps_of: dict[str, dict[str, TrialStep]] = {}
    for trial in trials:
        known, folders = identities[trial.name], dict[str, Path]()
        shared = {name: uses[identity] > 1 for name, identity in known.items()}
        for name, identity in known.items():
            own = Path(TRIALS_FOLDER, trial.name, name)
            folders[name] = folder / (Path("shared", f"{name}-{identity}") if shared[name] else own)
        steps_of[trial.name] = {
            step.name: TrialStep(_step(step, folders, folder), folders[step.name], shared[step.name])
            for step in pipelines[trial.name]
        }
    return Grid(trials, steps_of)


def _pipeline(recipe: AblationRecipe, options: Mapping[str, Mapping[str, Any]]) -> list[PipelineStep]:
    """Return the pipeline's steps with the options of one trial."""
    steps = []
    for step in recipe.pipeline:
        rest = dict(options[step.name])
        steps.append(replace(step, what=str(rest.pop("fit", step.what)), options=rest))
    return steps


def _references(step: PipelineStep, names: Iterable[str]) -> list[str]:
    text = json.dumps([step.what, dict(step.options)], default=str)
    return [name for name in names if f"{{{name}}}" in text]


def _identities(pipeline: Sequence[PipelineStep]) -> dict[str, str]:
    known: dict[str, str] = {}
    for step in pipeline:
        text = json.dumps([step.kind, step.what, dict(step.options)], sort_keys=True, default=str)
        for other in _references(step, [step.name for step in pipeline]):
            if other not in known:
                raise UserError(f"step {step.name!r} refers to {other!r}, which does not come before it.")
            text = text.replace(f"{{{other}}}", f"<{known[other]}>")
        known[step.name] = hashlib.sha256(f"{step.name} {text}".encode()).hexdigest()[:8]
    return known


def _step(step: PipelineStep, folders: Mapping[str, Path], root: Path) -> Step:
    own = folders[step.name]

    def filled(value: Any) -> str:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        for name, path in (("folder", own), *folders.items()):
            text = text.replace(f"{{{name}}}", str(path))
        return text

    words = [word for key, value in step.options.items() for word in (f"--{key}", filled(value))]
    after = tuple(step_name(folders[name], root) for name in _references(step, folders))
    name = step_name(own, root)
    if step.kind == "fit":
        command = (*DIVOT, "fit", "--config", filled(step.what), "--run", str(own), *words)
        return Step(name, command, after, run=own, resume=(*DIVOT, "resume", str(own)))
    if step.kind == "measure":
        return Step(name, (*MEASURE, *step.what.split(), "--output", str(own), *words), after, outputs=(own,))
    return Step(name, (*DIVOT, *map(filled, shlex.split(step.what)), *words), after, outputs=(own,))


def step_name(folder: Path, root: Path) -> str:
    """Return the name of a step from its folder, for logs and records.

    >>> step_name(Path("out/cells/gmm-seed0/llm"), Path("out"))
    'cells.gmm-seed0.llm'
    """
    return ".".join(folder.relative_to(root).parts)
