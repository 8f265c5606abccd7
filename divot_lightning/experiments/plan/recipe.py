"""Read the recipe of an experiment. No torch in here.

A recipe holds the steps, and optionally variants of them, seeds, and what the report shows::

    title: Generation heads
    steps:
      - {name: data, divot: "data toy {folder}", options: {train: 4096}}
      - {name: tokenizer, fit: toy/tokenizer_pretraining, options: {data.train: "{data}/train"}}
      - {name: llm, fit: toy/llm_pretraining, options: {model.previous: "{tokenizer}"}}
      - {name: scores, measure: [{benchmark: toy-captions, data: "{data}"}], options: {run: "{llm}"}}
    vary:
      head:
        mse: {llm: {model.head: mse}}
        gmm: {llm: {model.head: gmm, model.head.num_components: 16}}
    seeds: {values: [0, 1], options: {llm: [seed_everything, data.seed]}}
    baseline: gmm
    scores: {toy-captions/exact: higher}

`{folder}` is a step's own folder, `{name}` that of another step. `extends: ablations/heads` takes all other keys from
another recipe, and `options: {llm: {...}}` changes options of the steps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from divot_lightning.errors import UserError, require_one_of
from divot_lightning.experiments.plan.experiment import Experiment, Kind, MatchedBy, PipelineStep
from divot_lightning.experiments.plan.recipe_shapes import as_list, as_mapping, is_number
from divot_lightning.experiments.plan.report_recipe import parse_reference, parse_report, refuse_unknown
from divot_lightning.experiments.plan.variants_recipe import parse_seeds, parse_vary, refuse_unknown_steps
from divot_lightning.experiments.results.directions import parse_better
from divot_lightning.training.recipe_files import find_recipe

_TEXTS = ("title", "question", "matched_by", "baseline")
_STEPS = '[{name: data, divot: "data toy {folder}"}]'


def load_recipe(name: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Read the recipe of an experiment.

    Args:
        name: A path, or the name of a shipped recipe such as `ablations/heads`.
        changes: Keys that replace those of the recipe.

    Raises:
        UserError: The file is missing, or is not the recipe of an experiment.
    """
    path = find_recipe(name)
    try:
        return parse_recipe({**recipe_content(path), **(changes or {})})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def recipe_content(path: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the content of a recipe, with all keys that it takes from the recipe that it extends.

    Args:
        path: The file.
        readers: The recipes that extend it.

    Raises:
        UserError: A recipe is no YAML or no mapping, or recipes extend each other in a circle.
    """
    if path in readers:
        raise UserError(f"recipes extend each other in a circle: {', '.join(map(str, (*readers, path)))}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}; the recipe of an experiment is a mapping with `steps`."
        )
    if "extends" in content:
        content = {**recipe_content(find_recipe(str(content.pop("extends"))), (*readers, path)), **content}
    changes = as_mapping("`options`", content.pop("options", None), "{llm: {trainer.max_steps: 300}}")
    return {**content, "steps": _with_options(content.get("steps"), changes)} if changes else content


def _with_options(steps: Any, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    changed = [dict(_named(step)) for step in as_list("`steps`", steps, _STEPS)]
    refuse_unknown_steps("`options` names", changes, [str(step["name"]) for step in changed])
    for step in changed:
        own, new = (_options(step["name"], given) for given in (step.get("options"), changes.get(step["name"])))
        step["options"] = {**own, **new}
    return changed


def _named(step: Any) -> Mapping[str, Any]:
    if not isinstance(step, Mapping) or "name" not in step:
        raise UserError(f"a step needs a name: {step!r}.")
    return step


def _options(step: str, given: Any) -> Mapping[str, Any]:
    return as_mapping(f"`options` of step {step!r}", given, "{trainer.max_steps: 300}")


def parse_recipe(content: Mapping[str, Any]) -> Experiment:
    """Check the content of a recipe.

    Raises:
        UserError: Something is missing, unknown or refers to nothing.
    """
    if "pipeline" in content:
        raise UserError("`pipeline` is now `steps`; and `measure` is a list, such as [{benchmark: toy-captions}].")
    refuse_unknown(
        "the recipe", content, (set(Experiment.__dataclass_fields__) | {"curves"}) - {"content", "seed_options"}
    )
    for key in ("title", "steps"):
        if not content.get(key):
            raise UserError(f"`{key}` is missing; an experiment needs title and steps.")
    steps = _parse_steps(as_list("`steps`", content["steps"], _STEPS))
    names = [step.name for step in steps]
    scores = as_mapping("`scores`", content.get("scores"), "{toy/all: higher}")
    texts: dict[str, Any] = {name: str(content[name]) for name in _TEXTS if content.get(name) is not None}
    recipe = Experiment(
        **texts,
        **parse_seeds(content.get("seeds")),
        amount=content.get("amount"),
        steps=steps,
        vary=parse_vary(content.get("vary"), names),
        matched_steps=tuple(as_list("`matched_steps`", content.get("matched_steps"), "[llm]")),
        scores={name: parse_better(name, better) for name, better in scores.items()},
        reference=parse_reference(content.get("reference")),
        report=parse_report(content.get("report") or {}, content.get("curves")),
        content=dict(content),
    )
    _check(recipe, names)
    return recipe


def _parse_steps(entries: Sequence[Any]) -> tuple[PipelineStep, ...]:
    steps = tuple(_parse_step(entry) for entry in entries)
    names = [step.name for step in steps]
    if len(set(names)) < len(names):
        raise UserError(f"steps share a name: {', '.join(names)}; give each its own.")
    return steps


def _parse_step(entry: Any) -> PipelineStep:
    entry = _named(entry)
    where, kinds = f"step {entry['name']!r}", [kind for kind in get_args(Kind) if kind in entry]
    if len(kinds) != 1:
        raise UserError(f"{where} needs exactly one of {', '.join(get_args(Kind))}; it has {kinds}.")
    refuse_unknown(where, entry, {"name", "options", "folder", "slots", "only", *get_args(Kind)})
    what = entry[kinds[0]]
    measured = isinstance(what, list) and all(isinstance(each, Mapping) and "benchmark" in each for each in what)
    unnamed = measured and [each["benchmark"] for each in what if "name" not in each]
    if kinds[0] == "measure" and not (what and measured):
        raise UserError(f"{where}: `measure` is a list of measurements, such as [{{benchmark: toy-captions}}].")
    if unnamed and not all(isinstance(benchmark, str) for benchmark in unnamed):
        raise UserError(f"{where}: give the measurement a `name`, since its benchmark is a mapping.")
    kept = as_mapping(f"`only` of {where}", entry.get("only"), "{head: gmm}")
    only = {axis: tuple(those if isinstance(those, list) else [those]) for axis, those in kept.items()}
    slots, options = entry.get("slots", 1), _options(entry["name"], entry.get("options"))
    if not is_number(slots) or slots < 1:
        raise UserError(f"{where}: slots is {slots!r}; it must be a whole number, at least 1.")
    return PipelineStep(str(entry["name"]), kinds[0], what, options, str(entry.get("folder", "")), slots, only)


def _check(recipe: Experiment, names: Sequence[str]) -> None:
    require_one_of(get_args(MatchedBy), matched_by=recipe.matched_by)
    if recipe.amount is not None and not (is_number(recipe.amount, int | float) and recipe.amount > 0):
        raise UserError(f"amount is {recipe.amount!r}; give a number above 0.")
    if recipe.matched_by != "steps" and recipe.amount is None:
        raise UserError(f"matched_by is {recipe.matched_by!r}, so `amount` must state how many.")
    if (recipe.amount is None) != (not recipe.matched_steps):
        raise UserError("`amount` and `matched_steps` belong together: give how much, and for which steps.")
    refuse_unknown_steps("`seeds` names", recipe.seed_options, names)
    refuse_unknown_steps("`matched_steps` names", recipe.matched_steps, names)
    refuse_unknown_steps("`report.charts` or `curves` names", recipe.report.drawn_steps(), names)
    if len(recipe.seeds) > 1 and not recipe.seed_options:
        raise UserError(f"{len(recipe.seeds)} seeds, but `seeds.options` names no option that takes them.")
    sources = [source for step in recipe.steps for source in step.sources()]
    if twice := sorted({source for source in sources if sources.count(source) > 1}):
        raise UserError(f"measurements share a name: {', '.join(twice)}; give each a `name` of its own.")
    if unknown := sorted(set(recipe.report.shown_sources()) - set(sources)):
        raise UserError(f"`report` names {unknown}; the measurements are {', '.join(sources)}.")
    _check_only(recipe)


def _check_only(recipe: Experiment) -> None:
    values: dict[str, Sequence[Any]] = {"seed": recipe.seeds, **{axis: list(v) for axis, v in recipe.vary.items()}}
    for step in recipe.steps:
        if step.only and step.name in recipe.matched_steps:
            raise UserError(f"step {step.name!r} is in `matched_steps`, so all trials must have it; leave out `only`.")
        refuse_unknown(f"`only` of step {step.name!r}", step.only, set(values))
        for axis, kept in step.only.items():
            if not set(kept) <= set(values[axis]):
                raise UserError(f"step {step.name!r} is only for {axis} {list(kept)}; there are {list(values[axis])}.")
