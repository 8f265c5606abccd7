"""Read the variants and the seeds of an experiment's recipe. No torch in here."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from divot_lightning.errors import UserError, require_seed
from divot_lightning.experiments.plan.experiment import Options
from divot_lightning.experiments.plan.recipe_shapes import as_list, as_mapping, is_number
from divot_lightning.experiments.plan.report_recipe import refuse_unknown

_NAME = re.compile(r"[A-Za-z0-9][\w.+]*")


def parse_seeds(given: Any) -> dict[str, Any]:
    """Return the seeds and, by step, the options that take them.

    Raises:
        UserError: A value is no seed or given twice, or an option is no list.
    """
    given = as_mapping("`seeds`", given, "{values: [0, 1, 2], options: {llm: [seed_everything]}}")
    refuse_unknown("seeds", given, {"values", "options"})
    seeds = as_list("`seeds.values`", given.get("values", [0]), "[0, 1, 2]")
    if wrong := [seed for seed in seeds if not is_number(seed)]:
        raise UserError(f"`seeds.values` has {wrong[0]!r}; a seed is a whole number.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"`seeds.values` is {list(seeds)}; give at least one seed, and each once.")
    for seed in seeds:
        require_seed(seed, "a seed of `seeds.values`")
    options = as_mapping("`seeds.options`", given.get("options"), "{llm: [seed_everything]}")
    lists = {step: as_list(f"`seeds.options` of {step}", keys, "[seed_everything]") for step, keys in options.items()}
    return {"seeds": tuple(seeds), "seed_options": {step: tuple(keys) for step, keys in lists.items()}}


def parse_vary(given: Any, names: Sequence[str]) -> dict[str, dict[str, dict[str, Options]]]:
    """Return what each variant of each axis changes, by step.

    Args:
        given: As YAML gives it.
        names: Of all steps.

    Raises:
        UserError: A variant has no name for a folder, or changes something that is no step or no mapping.
    """
    axes: dict[str, dict[str, dict[str, Options]]] = {}
    for axis, variants in as_mapping("`vary`", given, "{head: {gmm: {llm: {model.head: gmm}}}}").items():
        if not isinstance(variants, Mapping) or not variants:
            raise UserError(f"the axis {axis!r} names no variants; give each a name and what it changes.")
        axes[axis] = {str(variant): _changes(variant, changes, names) for variant, changes in variants.items()}
    return axes


def _changes(variant: Any, given: Any, names: Sequence[str]) -> dict[str, Options]:
    what = f"the variant {str(variant)!r}"
    if not _NAME.fullmatch(str(variant)):
        raise UserError(f"{what} becomes a folder; use letters, digits, dots and underscores.")
    changes = as_mapping(what, given, "{llm: {model.head: gmm}}")
    refuse_unknown_steps(f"{what} changes", changes, names)
    return {step: as_mapping(f"what {what} changes in {step}", changes[step], "{model.head: gmm}") for step in changes}


def refuse_unknown_steps(what: str, given: Mapping[str, Any] | Sequence[str], names: Sequence[str]) -> None:
    """Refuse names that are no steps.

    Raises:
        UserError: Names them, and the steps.
    """
    if unknown := sorted(set(given) - set(names)):
        raise UserError(f"{what} {unknown}; the steps are {', '.join(names)}.")
