"""The trials of an experiment: combinations of variants and seeds, and the steps of each with its options."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.experiment import Experiment, PipelineStep


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
        return "-".join(self.variants) or "all"

    @property
    def name(self) -> str:
        """Name of the trial and of its folder.

        >>> Trial(("gmm", "causal"), 1).name
        'gmm-causal-seed1'
        """
        return f"{self.group}-seed{self.seed}"


def make_trials(recipe: Experiment) -> tuple[Trial, ...]:
    """List all combinations of variants, each with every seed."""
    combinations = itertools.product(*recipe.vary.values())
    return tuple(Trial(variants, seed) for variants in combinations for seed in recipe.seeds)


def trial_options(recipe: Experiment, trial: Trial) -> dict[str, dict[str, Any]]:
    """Return the options of each step in a trial: the recipe's, then the variants', then the seed.

    In a variant, `fit` is not an option: it names another recipe for the step.

    Raises:
        UserError: Two axes change one option.
    """
    options: dict[str, dict[str, Any]] = {step.name: dict(step.options) for step in recipe.steps}
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


def trial_pipeline(recipe: Experiment, trial: Trial, max_steps: Mapping[str, int]) -> list[PipelineStep]:
    """Return the steps of one trial, with its options."""
    options, facts = trial_options(recipe, trial), dict(zip(recipe.vary, trial.variants, strict=True))
    steps = []
    for step in recipe.steps:
        own = options[step.name] | ({"trainer.max_steps": max_steps[step.name]} if step.name in max_steps else {})
        if all(({"seed": trial.seed} | facts)[axis] in kept for axis, kept in step.only.items()):
            steps.append(replace(step, what=own.pop("fit", step.what), options=own))
    return steps
