"""Trials are all combinations; what two trials have in common is done once, and only that."""

import copy
import json
from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import parse_recipe
from divot_lightning.experiments.plan.trials import Trial, make_trials, trial_options
from divot_lightning.experiments.runner.steps import check_plan
from tests.divot_lightning.experiments.plan.test_recipe import RECIPE

OUT = Path("out")
GENERATION_MODES = {"causal": {"llm": {"model.llm.generation_mode": "query_causal"}}, "both": {}}


def recipe(**changes):
    return parse_recipe(copy.deepcopy(RECIPE) | changes)


def test_trials_are_all_combinations_with_every_seed():
    trials = make_trials(recipe(vary={**RECIPE["vary"], "generation_mode": GENERATION_MODES}))
    assert len(trials) == 2 * 2 * 2
    assert {trial.name for trial in trials} >= {"mse-causal-seed0", "gmm-both-seed1"}


def test_options_are_the_steps_then_the_variants_then_the_seed():
    options = trial_options(recipe(), Trial(("gmm",), 1))
    assert options["llm"] == {"data.train": "{data}/train", "model.head": "gmm", "seed_everything": 1}
    assert options["data"] == {"train": 8}


def test_what_all_trials_need_is_done_once_and_the_rest_once_per_trial():
    steps = [step.name for step in make_grid(recipe(), OUT).all_steps()]
    assert sum(name.startswith("shared.data") for name in steps) == 1
    assert sorted(name for name in steps if name.endswith("llm")) == [
        f"trials.{head}-seed{seed}.llm" for head in ("gmm", "mse") for seed in (0, 1)
    ]
    assert len(steps) == 1 + 4 + 4


def test_a_change_in_an_early_step_separates_everything_behind_it():
    vary = {"size": {"small": {"data": {"train": 8}}, "large": {"data": {"train": 16}}}}
    grid = make_grid(recipe(vary=vary), OUT)
    small, large = (grid.steps[f"{size}-seed0"] for size in ("small", "large"))
    assert small["data"].folder != large["data"].folder
    assert small["data"].folder == grid.steps["small-seed1"]["data"].folder
    assert small["llm"].folder != large["llm"].folder


def test_steps_stand_behind_what_they_refer_to_and_read_its_folder():
    grid = make_grid(recipe(), OUT)
    check_plan(grid.all_steps())
    trial = grid.steps["mse-seed0"]
    assert f"{trial['data'].folder}/train" in trial["llm"].step.command
    assert trial["scores"].step.after == (trial["data"].step.name, "trials.mse-seed0.llm")
    assert [step.name for step in grid.shared_steps()] == [trial["data"].step.name]


def test_a_trial_is_an_ordinary_run_that_resumes_by_itself():
    step = make_grid(recipe(), OUT).steps["mse-seed0"]["llm"].step
    assert step.command[2:7] == ("divot_lightning", "fit", "--config", "toy/llm_pretraining", "--run")
    assert step.run == OUT / "trials/mse-seed0/llm"
    assert step.resume[-2:] == ("resume", str(step.run))


def test_an_experiment_of_an_earlier_version_continues_in_its_folders(tmp_path):
    (tmp_path / "cells").mkdir()
    step = make_grid(recipe(), tmp_path).steps["mse-seed0"]["llm"].step
    assert (step.name, step.run) == ("cells.mse-seed0.llm", tmp_path / "cells/mse-seed0/llm")


def test_matched_steps_reach_the_command():
    grid = make_grid(recipe(), OUT, {"mse-seed0": {"llm": 7}})
    command = grid.steps["mse-seed0"]["llm"].step.command
    assert command[command.index("--trainer.max_steps") + 1] == "7"
    assert "--trainer.max_steps" not in grid.steps["gmm-seed0"]["llm"].step.command


def test_two_axes_may_not_change_the_same_option():
    vary = {"a": {"x": {"llm": {"model.head": "mse"}}}, "b": {"y": {"llm": {"model.head": "gmm"}}}}
    with pytest.raises(UserError, match=r"'a' and 'b' both change model.head"):
        make_grid(recipe(vary=vary), OUT)


def test_a_reference_to_a_later_step_is_refused():
    steps = [
        {"name": "llm", "fit": "x", "options": {"data.train": "{data}"}},
        {"name": "data", "divot": "data toy {folder}"},
    ]
    with pytest.raises(UserError, match="'llm' refers to 'data'"):
        make_grid(recipe(steps=steps, vary={}, seeds={}), OUT)


def test_a_variant_can_take_another_recipe_for_a_step():
    grid = make_grid(recipe(vary={"how": {"plain": {}, "tuned": {"llm": {"fit": "toy/instruction_tuning"}}}}), OUT)
    commands = [grid.steps[f"{name}-seed0"]["llm"].step.command for name in ("plain", "tuned")]
    assert [command[5] for command in commands] == ["toy/llm_pretraining", "toy/instruction_tuning"]
    assert "--fit" not in commands[1]


def steps_of(*entries, **changes):
    """Return the grid of a recipe with these steps and nothing that varies."""
    return make_grid(recipe(steps=list(entries), vary={}, seeds={}, scores={}, **changes), OUT)


FIT = {"name": "a", "fit": "x"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{**FIT, "options": {"p": "{b}/train"}}], "'a' refers to 'b', which is no step; the steps are a"),
        (
            [{**FIT, "options": {"p": "{b}"}}, {"name": "b", "fit": "x", "options": {"p": "{a}"}}],
            "circle: (a -> b|b -> a)",
        ),
        ([{**FIT, "options": {"p": "{a}"}}], "in a circle: a -> a"),
        (
            [{"name": "b", "divot": "data toy somewhere"}, {**FIT, "options": {"p": "{b}"}}],
            "'a' reads {b}, but 'b' does not write there: use {folder}",
        ),
        ([{**FIT, "folder": "{head}"}], "folder '{head}' of step 'a' cannot be filled: 'head'; in braces: seed"),
        ([{**FIT, "folder": "a{b"}], "folder 'a{b' of step 'a' cannot be filled"),
        ([{**FIT, "folder": "{seed.x}"}], "folder '{seed.x}' of step 'a' cannot be filled"),
    ],
)
def test_steps_that_cannot_work_are_refused_before_anything_runs(entries, message):
    with pytest.raises(UserError, match=message):
        steps_of(*entries)


def test_an_experiment_without_variants_has_a_folder_per_step():
    grid = steps_of({"name": "a", "command": "make {folder}"}, {"name": "b", "fit": "x", "options": {"p": "{a}/y"}})
    assert [step.name for step in grid.all_steps()] == ["a", "b"]
    assert grid.all_steps()[0].command == ("make", "out/a")
    assert grid.all_steps()[1].after == ("a",)


def test_a_step_names_its_folder_and_only_its_trials_have_it():
    first = {"name": "llm", "fit": "x", "folder": "llm_{head}_{seed}"}
    tuned = {
        "name": "tuned",
        "fit": "y",
        "folder": "tuned",
        "only": {"head": "gmm", "seed": 1},
        "options": {"p": "{llm}"},
    }
    grid = make_grid(recipe(steps=[first, tuned], scores={}), OUT)
    assert [step.name for step in grid.all_steps()] == ["llm_mse_0", "llm_mse_1", "llm_gmm_0", "llm_gmm_1", "tuned"]
    assert grid.all_steps()[-1].after == ("llm_gmm_1",)
    assert [name for name, steps in grid.steps.items() if "tuned" in steps] == ["gmm-seed1"]


def test_the_steps_of_the_baseline_start_first():
    steps = make_grid(recipe(baseline="gmm"), OUT).all_steps()
    assert next(step.name for step in steps if step.name.endswith("llm")) == "trials.gmm-seed0.llm"


def test_different_steps_may_not_share_a_folder():
    with pytest.raises(UserError, match="'llm' differs between trials, but all write llm"):
        make_grid(recipe(steps=[{"name": "llm", "fit": "x", "folder": "llm"}], scores={}), OUT)


def test_a_reference_to_a_step_that_other_trials_lack_is_refused():
    steps = [{**FIT, "only": {"head": "gmm"}}, {"name": "llm", "fit": "y", "options": {"p": "{a}"}}]
    with pytest.raises(UserError, match="'llm' refers to 'a', which not all of its trials have"):
        make_grid(recipe(steps=steps, scores={}), OUT)


def test_names_in_braces_of_a_prompt_are_no_steps():
    grid = steps_of({"name": "a", "divot": "evaluate RUN --output {folder}", "options": {"prompt": "{question} {x}"}})
    assert grid.all_steps()[0].command[-1] == "{question} {x}"


def test_several_commands_and_several_measurements_share_a_process():
    measured = [
        {"name": "world", "benchmark": "toy-real-clips", "seed": 3},
        {"name": "again", "benchmark": "toy-real-clips"},
    ]
    grid = steps_of(
        {"name": "a", "divot": ["data toy {folder}/x y", "heads"], "options": {"train": 2}},
        {"name": "b", "measure": measured, "options": {"clips": "{a}/x"}},
    )
    first, second = grid.all_steps()
    assert first.command[2:] == ("divot_lightning", "several", "data toy out/a/x y --train 2", "heads --train 2")
    assert json.loads(second.command[3]) == [
        {"benchmark": "toy-real-clips", "clips": "out/a/x", "name": "world", "output": "out/b/world", "seed": 3},
        {"benchmark": "toy-real-clips", "clips": "out/a/x", "name": "again", "output": "out/b/again"},
    ]
    assert grid.steps["all-seed0"]["b"].sources == {"world": OUT / "b/world", "again": OUT / "b/again"}


def test_a_step_can_take_the_place_of_several_jobs():
    assert [step.slots for step in steps_of(FIT, {"name": "b", "fit": "x", "slots": 2}).all_steps()] == [1, 2]
