"""A recipe that cannot be meant is refused with the word that is wrong."""

import copy

import pytest
import yaml

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.recipe import load_recipe, parse_recipe
from divot_lightning.experiments.results.directions import Near
from divot_lightning.experiments.run import lock_recipe

RECIPE = yaml.safe_load(
    """
title: Heads
steps:
  - {name: data, divot: "data toy {folder}", options: {train: 8}}
  - {name: llm, fit: toy/llm_pretraining, options: {data.train: "{data}/train"}}
  - {name: scores, measure: [{name: captions, benchmark: toy-captions}], options: {run: "{llm}", data: "{data}"}}
vary:
  head:
    mse: {llm: {model.head: mse}}
    gmm: {llm: {model.head: gmm}}
seeds: {values: [0, 1], options: {llm: [seed_everything]}}
scores: {captions/exact: higher}
"""
)


def changed(**changes):
    return copy.deepcopy(RECIPE) | changes


def test_a_recipe_is_read_as_written():
    recipe = parse_recipe(RECIPE)
    assert [step.kind for step in recipe.steps] == ["divot", "fit", "measure"]
    assert list(recipe.vary["head"]) == ["mse", "gmm"]
    assert recipe.seeds == (0, 1)
    assert recipe.seed_options == {"llm": ("seed_everything",)}
    assert recipe.matched_by == "steps"


def test_a_score_may_be_best_near_a_number_also_after_a_restart(tmp_path):
    recipe = parse_recipe(changed(scores={"generation/spread": {"near": 1}, "captions/exact": "higher"}))
    assert recipe.scores == {"generation/spread": Near(1.0), "captions/exact": "higher"}
    lock_recipe(recipe, tmp_path)
    assert parse_recipe(yaml.safe_load((tmp_path / "recipe.yaml").read_text())).scores == recipe.scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": []}, "`steps` is missing"),
        ({"pipeline": []}, "`pipeline` is now `steps`"),
        ({"varied": {}}, "'varied'; known"),
        ({"steps": [{"fit": "x"}]}, "needs a name"),
        ({"steps": [{"name": "a", "fit": "x", "divot": "y"}]}, r"exactly one of .* it has \['fit', 'divot'\]"),
        ({"steps": [{"name": "a", "fit": "x", "optionz": {}}]}, "'optionz'"),
        ({"steps": [{"name": "a", "fit": "x"}] * 2}, "share a name: a, a"),
        ({"vary": {"head": {"m/se": {}}}}, "variant 'm/se'"),
        ({"vary": {"head": {"mse": {"lllm": {}}}}}, r"changes \['lllm'\]; the steps are data, llm, scores"),
        ({"vary": {"head": {}}}, "axis 'head' names no variants"),
        ({"matched_by": "hours"}, "matched_by is 'hours'"),
        ({"matched_by": "tokens"}, "`amount` must state"),
        ({"amount": 4}, "belong together"),
        ({"amount": 4, "matched_steps": ["llms"]}, r"`matched_steps` names \['llms'\]"),
        ({"seeds": {"values": [0, 1]}}, "2 seeds, but"),
        ({"seeds": {"values": [0], "options": {"lmm": ["x"]}}}, r"`seeds` names \['lmm'\]"),
        ({"steps": [{"name": "a", "measure": "captions"}]}, "`measure` is a list of measurements"),
        ({"steps": [{"name": "a", "measure": [{"name": "b"}]}]}, "`measure` is a list of measurements"),
        (
            {"steps": [{"name": "a", "measure": [{"benchmark": "toy"}] * 2}], "vary": {}, "seeds": {}},
            "share a name: toy",
        ),
        (
            {"steps": [{"name": "a", "fit": "x", "only": {"heads": "b"}}], "vary": {}, "seeds": {}},
            "`only` of step 'a' has 'heads'",
        ),
        (
            {
                "steps": [{"name": "llm", "fit": "x", "only": {"head": "mse"}}],
                "scores": {},
                "amount": 4,
                "matched_steps": ["llm"],
            },
            "so all trials must have it",
        ),
        ({"steps": [{"name": "llm", "fit": "x", "only": {"head": "flow"}}]}, r"only for head \['flow'\]; there are"),
        ({"steps": [{"name": "a", "measure": [{"benchmark": {"class_path": "x"}}]}]}, "give the measurement a `name`"),
        ({"steps": {"data": {"divot": "data toy"}}}, "`steps` is .*; give a list, such as"),
        ({"steps": [{"name": "a", "fit": "x", "options": [1]}]}, "`options` of step 'a' is '.1.'; give a mapping"),
        ({"steps": [{"name": "a", "fit": "x", "only": "gmm"}]}, "`only` of step 'a' is 'gmm'; give a mapping"),
        ({"steps": [{"name": "a", "fit": "x", "slots": "two"}]}, "slots is 'two'; it must be a whole number"),
        ({"vary": ["head"]}, "`vary` is .*; give a mapping, such as"),
        ({"vary": {"head": {"mse": "mse"}}}, "the variant 'mse' is 'mse'; give a mapping"),
        ({"vary": {"head": {"mse": {"llm": "mse"}}}}, "variant 'mse' changes in llm is 'mse'; give a mapping"),
        ({"seeds": [0, 1]}, "`seeds` is '.0, 1.'; give a mapping"),
        ({"seeds": {"values": 3}}, "`seeds.values` is '3'; give a list"),
        ({"seeds": {"values": ["a"]}}, "`seeds.values` has 'a'; a seed is a whole number"),
        ({"seeds": {"values": [0, 1, 0]}}, "give at least one seed, and each once"),
        ({"seeds": {"values": [-1]}}, "a seed of `seeds.values` is -1"),
        (
            {"seeds": {"options": {"llm": "seed_everything"}}},
            "`seeds.options` of llm is 'seed_everything'; give a list",
        ),
        ({"scores": ["captions/exact"]}, "`scores` is .*; give a mapping, such as"),
        ({"amount": "many", "matched_steps": ["llm"]}, "amount is 'many'; give a number above 0"),
        ({"amount": 4, "matched_steps": "llm"}, "`matched_steps` is 'llm'; give a list"),
        ({"curves": ["train/loss"]}, "`curves` is .*; give a mapping"),
        ({"curves": {"llm": "train/loss"}}, "`curves` of llm is 'train/loss'; give a list"),
        ({"report": {"charts": {"title": "t"}}}, "`report.charts` is .*; give a list"),
        ({"report": {"charts": [{"title": "t", "lines": ["a"]}]}}, "`lines` of chart 't' is .*; give a mapping"),
        ({"reference": [{"title": "t", "rows": []}]}, "a table of `reference` lacks columns"),
        ({"reference": [{"title": "t", "columns": ["a", "b"], "rows": [[1]]}]}, "has 1 entries for 2 columns"),
        ({"curves": {"lmm": ["train/loss"]}}, r"`curves` names \['lmm'\]"),
        ({"report": {"table": []}}, "`report` has 'table'; known: answers"),
        ({"report": {"tables": [{"title": "t", "sources": {}}]}}, "a table of `report` lacks scores"),
        (
            {"report": {"generations": {"sources": {"a": "clips"}}}},
            r"\['clips'\]; the measurements are data, llm, captions",
        ),
        ({"report": {"charts": [{"title": "t", "lines": {"a": "b"}}]}}, "a line is .step, column"),
        ({"scores": {"captions/exact": "up"}}, r"'up'; give which values are better: higher, lower or {near: 1}"),
        ({"scores": {"captions/exact": {"near": "one"}}}, r"{'near': 'one'}; give which values are better"),
        ({"scores": {"captions/exact": {"near": 1, "far": 2}}}, "give which values are better"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(changed(**changes))


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"list.yaml holds a list"):
        load_recipe(str(tmp_path / "list.yaml"))


def test_a_recipe_takes_from_the_one_it_extends_and_changes_options(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RECIPE))
    changes = {"extends": str(tmp_path / "base.yaml"), "title": "Other", "options": {"data": {"train": 16}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(changes))
    recipe = load_recipe(str(tmp_path / "other.yaml"))
    assert recipe.title == "Other"
    assert recipe.steps[0].options == {"train": 16}
    assert recipe.steps[1:] == parse_recipe(RECIPE).steps[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"dataa": {}}}, r"`options` names \['dataa'\]"),
        ({"options": ["data"]}, "`options` is .*; give a mapping"),
        ({"options": {"data": 8}}, "`options` of step 'data' is '8'; give a mapping"),
        ({"extends": "{here}"}, "in a circle"),
    ],
)
def test_an_impossible_extension_is_refused(tmp_path, changes, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes).replace("{here}", str(path)))
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))
