"""Read ablation recipes. No torch in here.

A recipe holds a pipeline of steps, and the variants of it::

    title: Generation heads
    pipeline:
      - {name: data, divot: "data toy {folder}", options: {train: 4096}}
      - {name: tokenizer, fit: toy/tokenizer_pretraining, options: {data.train: "{data}/train"}}
      - {name: llm, fit: toy/llm_pretraining, options: {model.previous: "{tokenizer}"}}
      - {name: scores, measure: captions generation, options: {run: "{llm}"}}
    vary:
      head:
        mse: {llm: {model.head: mse}}
        gmm: {llm: {model.head: gmm, model.head.num_components: 16}}
    seeds: {values: [0, 1], options: {llm: [seed_everything, data.seed]}}
    matched_by: steps
    baseline: gmm
    scores: {generation/all: higher, generation/frechet: lower, generation/spread: {near: 1}}

`{folder}` is a step's own folder, `{name}` that of another step. `extends: ablations/heads` takes all other keys from
another recipe, and `options: {llm: {...}}` changes options of the steps.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from divot_lightning.errors import UserError
from divot_lightning.experiments.ablation.directions import Better, parse_better
from divot_lightning.training.recipe_files import find_recipe

Kind = Literal["fit", "divot", "measure"]
MatchedBy = Literal["steps", "samples", "tokens", "compute"]
Options = Mapping[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][\w.+]*")


@dataclass(frozen=True)
class PipelineStep:
    """One step of the pipeline.

    Attributes:
        name: Its name in the recipe.
        kind: "fit" trains a stage, "divot" is any other divot command, "measure" measures a toy model.
        what: The recipe, the words of the command, or the kinds of measurement.
        options: Its options; values may refer to folders.
    """

    name: str
    kind: Kind
    what: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class AblationRecipe:
    """A pipeline and its variants.

    Attributes:
        title: Heading of the report.
        question: The question that the ablation answers, and what a reader must know about it.
        pipeline: The steps, each after those it refers to.
        vary: Changed options by axis, variant and step. Several axes give all combinations of their variants.
        seeds: Seeds that each variant is run with.
        seed_options: By step, the options that take the seed.
        matched_by: The amount of training that all variants share: optimizer steps, samples, tokens of
            the language model's sequences, or compute in floating point operations.
        amount: That amount; None for the steps that the recipes state.
        matched_steps: Training steps of the pipeline that `amount` applies to.
        baseline: The combination that others are compared with, its variants joined by a dash; "" for the first.
        scores: Scores of the table, and which of their values are better: higher, lower, or near a number.
        curves: Columns of metrics.csv that the report draws, by step.
        reference: Published tables to show beside ours, each with title, columns, rows and a note.
    """

    title: str
    question: str
    pipeline: tuple[PipelineStep, ...]
    vary: Mapping[str, Mapping[str, Mapping[str, Options]]]
    seeds: tuple[int, ...] = (0,)
    seed_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    matched_by: MatchedBy = "steps"
    amount: float | None = None
    matched_steps: tuple[str, ...] = ()
    baseline: str = ""
    scores: Mapping[str, Better] = field(default_factory=dict)
    curves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reference: tuple[Mapping[str, Any], ...] = ()


def load_recipe(name: str) -> AblationRecipe:
    """Read an ablation recipe.

    Args:
        name: A path, or the name of a shipped recipe such as `ablations/heads`.

    Raises:
        UserError: The file is missing, or is not an ablation recipe.
    """
    path = find_recipe(name)
    try:
        return parse_recipe(_read(path, ()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """Read a recipe, with all keys that it takes from the recipe that it extends."""
    if path in readers:
        raise UserError(f"recipes extend each other in a circle: {', '.join(map(str, (*readers, path)))}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; an ablation recipe is a mapping with `pipeline`.")
    if "extends" in content:
        content = {**_read(find_recipe(str(content.pop("extends"))), (*readers, path)), **content}
    changes = content.pop("options", None) or {}
    return {**content, "pipeline": _with_options(content.get("pipeline") or [], changes)}


def _with_options(pipeline: list[dict[str, Any]], changes: Mapping[str, Options]) -> list[dict[str, Any]]:
    unknown = sorted(set(changes) - {step.get("name") for step in pipeline})
    if unknown:
        raise UserError(f"`options` names {unknown}, which are no steps of the pipeline.")
    return [
        {**step, "options": {**(step.get("options") or {}), **changes[step["name"]]}}
        if step.get("name") in changes
        else step
        for step in pipeline
    ]


def parse_recipe(content: Mapping[str, Any]) -> AblationRecipe:
    """Check the content of a recipe.

    Raises:
        UserError: Something is missing, unknown or refers to nothing.
    """
    known = {"title", "question", "pipeline", "vary", "seeds", "matched_by", "amount", "matched_steps", "baseline"}
    known |= {"scores", "curves", "reference"}
    _refuse_unknown("the recipe", content, known)
    for key in ("title", "pipeline", "vary"):
        if not content.get(key):
            raise UserError(f"`{key}` is missing; an ablation needs title, pipeline and vary.")
    pipeline = tuple(_parse_step(entry) for entry in content["pipeline"])
    names = [step.name for step in pipeline]
    if len(set(names)) < len(names):
        raise UserError(f"steps of the pipeline share a name: {', '.join(names)}; give each its own.")
    seeds = content.get("seeds") or {}
    _refuse_unknown("seeds", seeds, {"values", "options"})
    recipe = AblationRecipe(
        title=content["title"],
        question=content.get("question", ""),
        pipeline=pipeline,
        vary=_parse_vary(content["vary"], names),
        seeds=tuple(seeds.get("values", (0,))),
        seed_options={step: tuple(keys) for step, keys in (seeds.get("options") or {}).items()},
        matched_by=content.get("matched_by", "steps"),
        amount=content.get("amount"),
        matched_steps=tuple(content.get("matched_steps", ())),
        baseline=content.get("baseline", ""),
        scores=_parse_scores(content.get("scores") or {}),
        curves={step: tuple(columns) for step, columns in (content.get("curves") or {}).items()},
        reference=tuple(content.get("reference") or ()),
    )
    _check(recipe, names)
    return recipe


def restore_recipe(fields: Mapping[str, Any]) -> AblationRecipe:
    """Build a recipe from its fields as plain values, as they are stored in the folder of an ablation."""
    pipeline = tuple(PipelineStep(**step) for step in fields["pipeline"])
    lists = {name: tuple(fields[name]) for name in ("seeds", "matched_steps", "reference")}
    return AblationRecipe(**{**fields, **lists, "pipeline": pipeline, "scores": _parse_scores(fields["scores"])})


def _parse_scores(scores: Mapping[str, Any]) -> dict[str, Better]:
    return {name: parse_better(name, better) for name, better in scores.items()}


def _refuse_unknown(where: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise UserError(f"{where} has {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}.")


def _parse_step(entry: Mapping[str, Any]) -> PipelineStep:
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise UserError(f"a step of the pipeline needs a name: {entry!r}.")
    kinds = [kind for kind in get_args(Kind) if kind in entry]
    if len(kinds) != 1:
        raise UserError(f"step {entry['name']!r} needs exactly one of {', '.join(get_args(Kind))}; it has {kinds}.")
    _refuse_unknown(f"step {entry['name']!r}", entry, {"name", "options", *get_args(Kind)})
    return PipelineStep(entry["name"], kinds[0], str(entry[kinds[0]]), entry.get("options") or {})


def _parse_vary(vary: Mapping[str, Any], names: list[str]) -> dict[str, dict[str, dict[str, Options]]]:
    axes: dict[str, dict[str, dict[str, Options]]] = {}
    for axis, variants in vary.items():
        if not isinstance(variants, Mapping) or not variants:
            raise UserError(f"the axis {axis!r} names no variants; give each a name and what it changes.")
        axes[axis] = {}
        for variant, changes in variants.items():
            if not _NAME.fullmatch(str(variant)):
                raise UserError(f"the variant {variant!r} becomes a folder; use letters, digits, dots and underscores.")
            unknown = sorted(set(changes or {}) - set(names))
            if unknown:
                raise UserError(f"the variant {variant!r} changes {unknown}, which are no steps of the pipeline.")
            axes[axis][str(variant)] = dict(changes or {})
    return axes


def _check(recipe: AblationRecipe, names: list[str]) -> None:
    if recipe.matched_by not in get_args(MatchedBy):
        raise UserError(f"matched_by is {recipe.matched_by!r}; known: {', '.join(get_args(MatchedBy))}.")
    if recipe.matched_by != "steps" and recipe.amount is None:
        raise UserError(f"matched_by is {recipe.matched_by!r}, so `amount` must state how many.")
    if (recipe.amount is None) != (not recipe.matched_steps):
        raise UserError(
            "`amount` and `matched_steps` belong together: give how much, and for which steps of the pipeline."
        )
    for what, given in (
        ("seeds", recipe.seed_options),
        ("matched_steps", recipe.matched_steps),
        ("curves", recipe.curves),
    ):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise UserError(f"`{what}` names {unknown}; the steps are {', '.join(names)}.")
    if len(recipe.seeds) > 1 and not recipe.seed_options:
        raise UserError(f"{len(recipe.seeds)} seeds, but `seeds.options` names no option that takes them.")
