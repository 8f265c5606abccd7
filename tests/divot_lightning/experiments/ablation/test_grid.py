"""Trials are all combinations; what two trials have in common is done once, and only that."""

import copy
from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.ablation.grid import Trial, make_grid, make_trials, trial_options
from divot_lightning.experiments.ablation.recipe import parse_recipe
from divot_lightning.experiments.runner.steps import check_plan
from tests.divot_lightning.experiments.ablation.test_recipe import RECIPE

OUT = Path("out")
MECHANISM = {"causal": {"llm": {"model.llm.generation_mode": "query_causal"}}, "both": {}}


def recipe(**changes):
    return parse_recipe(copy.deepcopy(RECIPE) | changes)


def test_trials_are_all_combinations_with_every_seed():
    trials = make_trials(recipe(vary={**RECIPE["vary"], "generation_mode": MECHANISM}))
    assert len(trials) == 2 * 2 * 2
    assert {trial.name for trial in trials} >= {"mse-causal-seed0", "gmm-both-seed1"}


def test_options_are_the_pipelines_then_the_variants_then_the_seed():
    options = trial_options(recipe(), Trial(("gmm",), 1))
    assert options["llm"] == {"data.train": "{data}/train", "model.head": "gmm", "seed_everything": 1}
    assert options["data"] == {"train": 8}


def test_what_all_trials_need_is_done_once_and_the_rest_once_per_trial():
    steps = [step.name for step in make_grid(recipe(), OUT).all_steps()]
    assert sum(name.startswith("shared.data") for name in steps) == 1
    assert sorted(name for name in steps if name.endswith("llm")) == [
        f"cells.{head}-seed{seed}.llm" for head in ("gmm", "mse") for seed in (0, 1)
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
    assert trial["scores"].step.after == ("cells.mse-seed0.llm",)
    assert [step.name for step in grid.shared_steps()] == [trial["data"].step.name]


def test_a_trial_is_an_ordinary_run_that_resumes_by_itself():
    step = make_grid(recipe(), OUT).steps["mse-seed0"]["llm"].step
    assert step.command[2:7] == ("divot_lightning", "fit", "--config", "toy/llm_pretraining", "--run")
    assert step.run == OUT / "cells/mse-seed0/llm"
    assert step.resume[-2:] == ("resume", str(step.run))


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
    pipeline = [{"name": "llm", "fit": "x", "options": {"data.train": "{data}"}}, {"name": "data", "divot": "data toy"}]
    with pytest.raises(UserError, match="'llm' refers to 'data'"):
        make_grid(recipe(pipeline=pipeline), OUT)


def test_a_variant_can_take_another_recipe_for_a_step():
    grid = make_grid(recipe(vary={"how": {"plain": {}, "tuned": {"llm": {"fit": "toy/instruction_tuning"}}}}), OUT)
    commands = [grid.steps[f"{name}-seed0"]["llm"].step.command for name in ("plain", "tuned")]
    assert [command[5] for command in commands] == ["toy/llm_pretraining", "toy/instruction_tuning"]
    assert "--fit" not in commands[1]
