"""From an ablation recipe to cells and steps: what cells have in common is one step, done once. No torch in here."""

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


@dataclass(frozen=True)
class Cell:
    """One combination of variants with one seed.

    Attributes:
        variants: The variant of each axis.
        seed: Its seed.
    """

    variants: tuple[str, ...]
    seed: int

    @property
    def group(self) -> str:
        """Name of the combination, which cells of all seeds share."""
        return "-".join(self.variants)

    @property
    def name(self) -> str:
        """Name of the cell and of its folder.

        >>> Cell(("gmm", "causal"), 1).name
        'gmm-causal-seed1'
        """
        return f"{self.group}-seed{self.seed}"


@dataclass(frozen=True)
class CellStep:
    """A step as a cell runs it.

    Attributes:
        step: What to run.
        folder: Where its results are.
        shared: Whether other cells use it as well.
    """

    step: Step
    folder: Path
    shared: bool


@dataclass(frozen=True)
class Grid:
    """All cells of an ablation and their steps.

    Attributes:
        cells: In the order of the recipe.
        steps: By cell name and pipeline step.
    """

    cells: tuple[Cell, ...]
    steps: Mapping[str, Mapping[str, CellStep]]

    def all_steps(self) -> list[Step]:
        """Return every step once: the pipeline's first ones first, so that what many cells wait for starts early."""
        columns = itertools.zip_longest(*([s.step for s in self.steps[cell.name].values()] for cell in self.cells))
        every = [step for column in columns for step in column if step is not None]
        return list({step.name: step for step in every}.values())

    def shared_steps(self) -> list[Step]:
        """Return the steps that more than one cell needs."""
        shared = {s.step.name for steps in self.steps.values() for s in steps.values() if s.shared}
        return [step for step in self.all_steps() if step.name in shared]


def make_cells(recipe: AblationRecipe) -> tuple[Cell, ...]:
    """List all combinations of variants, each with every seed."""
    combinations = itertools.product(*recipe.vary.values())
    return tuple(Cell(variants, seed) for variants in combinations for seed in recipe.seeds)


def cell_options(recipe: AblationRecipe, cell: Cell) -> dict[str, dict[str, Any]]:
    """Return the options of each step in a cell: the pipeline's, then the variants', then the seed.

    A variant's option `fit` is no option but another recipe for the step.

    Raises:
        UserError: Two axes change one option.
    """
    options: dict[str, dict[str, Any]] = {step.name: dict(step.options) for step in recipe.pipeline}
    changed: dict[tuple[str, str], str] = {}
    for axis, variant in zip(recipe.vary, cell.variants, strict=True):
        for step, changes in recipe.vary[axis][variant].items():
            for key, value in changes.items():
                other = changed.setdefault((step, key), axis)
                if other != axis:
                    raise UserError(f"the axes {other!r} and {axis!r} both change {key} of step {step!r}.")
                options[step][key] = value
    for step, keys in recipe.seed_options.items():
        options[step] |= dict.fromkeys(keys, cell.seed)
    return options


def make_grid(recipe: AblationRecipe, folder: Path, max_steps: Mapping[str, Mapping[str, int]] | None = None) -> Grid:
    """Plan all cells.

    A step is known by everything that decides its result: its words, with the folders of other steps replaced by what
    those are known by. Steps that are known by the same thing are one step.

    Args:
        recipe: The ablation.
        folder: Holds everything that the steps write: `shared/` and `cells/<cell>/`.
        max_steps: By cell name and pipeline step, how long it trains; what is not named is as its recipe says.
    """
    cells = make_cells(recipe)
    options = {cell.name: cell_options(recipe, cell) for cell in cells}
    for name, steps in (max_steps or {}).items():
        for step, number in steps.items():
            options[name][step]["trainer.max_steps"] = number
    pipelines = {cell.name: _pipeline(recipe, options[cell.name]) for cell in cells}
    identities = {cell.name: _identities(pipelines[cell.name]) for cell in cells}
    uses = Counter(identity for of_cell in identities.values() for identity in of_cell.values())
    steps_of: dict[str, dict[str, CellStep]] = {}
    for cell in cells:
        known, folders = identities[cell.name], dict[str, Path]()
        shared = {name: uses[identity] > 1 for name, identity in known.items()}
        for name, identity in known.items():
            own = Path("cells", cell.name, name)
            folders[name] = folder / (Path("shared", f"{name}-{identity}") if shared[name] else own)
        steps_of[cell.name] = {
            step.name: CellStep(_step(step, folders, folder), folders[step.name], shared[step.name])
            for step in pipelines[cell.name]
        }
    return Grid(cells, steps_of)


def _pipeline(recipe: AblationRecipe, options: Mapping[str, Mapping[str, Any]]) -> list[PipelineStep]:
    """Return the steps as one cell has them."""
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
                raise UserError(f"step {step.name!r} refers to {other!r}, which does not stand before it.")
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
    """Return a step by its folder, for logs and records.

    >>> step_name(Path("out/cells/gmm-seed0/llm"), Path("out"))
    'cells.gmm-seed0.llm'
    """
    return ".".join(folder.relative_to(root).parts)
