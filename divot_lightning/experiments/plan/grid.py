"""Plan the trials of an experiment and their steps; a step that several trials need is done once. No torch in here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from divot_lightning.errors import FORMAT_ERRORS, UserError
from divot_lightning.experiments.plan.commands import DIVOT, references, step_command, step_text
from divot_lightning.experiments.plan.experiment import Experiment, PipelineStep
from divot_lightning.experiments.plan.trials import Trial, make_trials, trial_pipeline
from divot_lightning.experiments.runner.steps import Step
from divot_lightning.io.files import text_sha256
from divot_lightning.io.renamed import OLD_TRIALS

TRIALS_FOLDER = "trials"
"""Folder of the trials inside that of the experiment."""


@dataclass(frozen=True)
class TrialStep:
    """A step of a trial.

    Attributes:
        step: What to run.
        folder: The folder of its results.
        shared: Whether other trials use the same step.
        sources: Folders of its scores, by name of the measurement.
    """

    step: Step
    folder: Path
    shared: bool
    sources: Mapping[str, Path]


@dataclass(frozen=True)
class Grid:
    """All trials of an experiment and their steps.

    Attributes:
        trials: In the order of the recipe.
        steps: By trial name and step of the recipe.
        names: Of all steps of the recipe, in its order.
        baseline: The combination whose steps start first.
    """

    trials: tuple[Trial, ...]
    steps: Mapping[str, Mapping[str, TrialStep]]
    names: tuple[str, ...]
    baseline: str = ""

    def all_steps(self) -> list[Step]:
        """Return every step once, in the order of the recipe: what many trials wait for starts early."""
        trials = sorted(self.trials, key=lambda trial: trial.group != self.baseline)
        own = (self.steps[trial.name].get(name) for name in self.names for trial in trials)
        return list({each.step.name: each.step for each in own if each}.values())

    def shared_steps(self) -> list[Step]:
        """Return the steps that more than one trial needs."""
        shared = {s.step.name for steps in self.steps.values() for s in steps.values() if s.shared}
        return [step for step in self.all_steps() if step.name in shared]


def make_grid(recipe: Experiment, folder: Path, max_steps: Mapping[str, Mapping[str, int]] | None = None) -> Grid:
    """Plan all trials.

    A step's identity is a hash of everything that decides its result: its command, in which the folders of other steps
    are replaced by the identities of those steps. Steps with the same identity are one step.

    Args:
        recipe: The experiment.
        folder: Holds everything that the steps write, in the folders that they name, or else in `shared/` and
            `trials/<trial>/`; or in a folder per step if there is a single trial.
        max_steps: Training steps by trial name and step; a step that is not named trains as its recipe says.

    Raises:
        UserError: A step refers to what is not there, or different steps would share a folder.
    """
    trials = make_trials(recipe)
    pipelines = {trial.name: trial_pipeline(recipe, trial, (max_steps or {}).get(trial.name, {})) for trial in trials}
    identities = {name: _identities(recipe, pipeline) for name, pipeline in pipelines.items()}
    uses = Counter(identity for of_trial in identities.values() for identity in of_trial.values())
    trials_folder = OLD_TRIALS if (folder / OLD_TRIALS).is_dir() else TRIALS_FOLDER
    users: dict[Path, str] = {}
    steps_of: dict[str, dict[str, TrialStep]] = {}
    for trial in trials:
        known, folders = identities[trial.name], dict[str, Path]()
        own = Path() if len(trials) == 1 else Path(trials_folder, trial.name)
        facts = {"seed": trial.seed, **dict(zip(recipe.vary, trial.variants, strict=True))}
        for step in pipelines[trial.name]:
            identity = known[step.name]
            default = own / step.name if uses[identity] == 1 else Path("shared", f"{step.name}-{identity}")
            inside = _folder(step, facts, default)
            folders[step.name] = folder / inside
            if users.setdefault(folder / inside, identity) != identity:
                raise UserError(
                    f"step {step.name!r} differs between trials, but all write {inside}; name axes in `folder`."
                )
        steps_of[trial.name] = {
            step.name: _trial_step(step, folders, folder, shared=uses[known[step.name]] > 1)
            for step in pipelines[trial.name]
        }
    return Grid(trials, steps_of, tuple(step.name for step in recipe.steps), recipe.baseline)


def _folder(step: PipelineStep, facts: Mapping[str, Any], default: Path) -> Path:
    """Return the folder of a step inside that of the experiment: the one that it names, else the default."""
    if not step.folder:
        return default
    try:
        return Path(step.folder.format(**facts))
    except FORMAT_ERRORS as error:
        known = ", ".join(facts)
        raise UserError(
            f"the folder {step.folder!r} of step {step.name!r} cannot be filled: {error}; in braces: {known}."
        ) from None


def _identities(recipe: Experiment, pipeline: Sequence[PipelineStep]) -> dict[str, str]:
    needs = {step.name: references(step) for step in pipeline}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        raise UserError(f"steps refer to each other in a circle: {' -> '.join(error.args[1])}.") from None
    known: dict[str, str] = {}
    writing = {step.name: step.kind in ("fit", "measure") or "{folder}" in step_text(step) for step in pipeline}
    for step in pipeline:
        text = step_text(step) + str(step.options.get("prompt", ""))
        for other in needs[step.name]:
            _check_reference(recipe, step.name, other, known, writing)
            text = text.replace(f"{{{other}}}", f"<{known[other]}>")
        known[step.name] = text_sha256(f"{step.name} {text}")[:8]
    return known


def _check_reference(
    recipe: Experiment, name: str, other: str, known: Mapping[str, str], writing: Mapping[str, bool]
) -> None:
    names = [step.name for step in recipe.steps]
    if other not in names:
        raise UserError(f"step {name!r} refers to {other!r}, which is no step; the steps are {', '.join(names)}.")
    if other not in writing:
        raise UserError(
            f"step {name!r} refers to {other!r}, which not all of its trials have; give it the same `only`."
        )
    if other not in known:
        raise UserError(f"step {name!r} refers to {other!r}, which does not come before it.")
    if not writing[other]:
        raise UserError(
            f"step {name!r} reads {{{other}}}, but {other!r} does not write there: use {{folder}} in its command."
        )


def _trial_step(step: PipelineStep, folders: Mapping[str, Path], root: Path, *, shared: bool) -> TrialStep:
    own = folders[step.name]
    known = {"folder": str(own), **{name: str(path) for name, path in folders.items()}}
    after = tuple(step_name(folders[other], root) for other in references(step))
    planned = Step(step_name(own, root), step_command(step, known, own), after, slots=step.slots)
    if step.kind == "fit":
        return TrialStep(replace(planned, run=own, resume=(*DIVOT, "resume", str(own))), own, shared, {})
    outputs = (own,) if step.kind == "measure" or "{folder}" in step_text(step) else ()
    sources = {source: own / source if step.kind == "measure" else own for source in step.sources()}
    return TrialStep(replace(planned, outputs=outputs), own, shared, sources)


def step_name(folder: Path, root: Path) -> str:
    """Return the name of a step from its folder, for logs and records.

    >>> step_name(Path("out/trials/gmm-seed0/llm"), Path("out"))
    'trials.gmm-seed0.llm'
    """
    return ".".join(folder.relative_to(root).parts)
