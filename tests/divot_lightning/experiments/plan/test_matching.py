"""Trials train as long as their common amount asks for, by what a step of theirs costs."""

import json

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.cost import main as measure_cost
from divot_lightning.experiments.plan.matching import steps_for_amount
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.divot_lightning.experiments.plan.test_grid import recipe

COSTS = {"mse-seed0": {"tokens": 500.0, "flops": 1e9}, "gmm-seed0": {"tokens": 500.0, "flops": 4e9}}


def matched(by, amount):
    return recipe(matched_by=by, amount=amount, matched_steps=["llm"])


@pytest.mark.parametrize(
    ("by", "amount", "expected"),
    [("steps", 70, (70, 70)), ("samples", 320, (10, 10)), ("tokens", 5000, (10, 10)), ("compute", 4e10, (40, 10))],
)
def test_steps_follow_from_the_amount(by, amount, expected):
    options = {"fit": "toy/llm_pretraining"}  # states batch_size 32
    found = tuple(steps_for_amount(matched(by, amount), options, COSTS, trial) for trial in COSTS)
    assert found == expected


def test_an_option_beats_the_recipes_batch_size():
    options = {"fit": "toy/llm_pretraining", "data.batch_size": 8}
    assert steps_for_amount(matched("samples", 320), options, {}, "mse-seed0") == 40


def test_a_step_that_accumulates_batches_has_the_samples_of_all_of_them():
    options = {"fit": "toy/llm_pretraining", "data.batch_size": 8, "trainer.accumulate_grad_batches": 4}
    assert steps_for_amount(matched("samples", 320), options, {}, "mse-seed0") == 10


def test_a_recipe_that_accumulates_has_the_samples_of_all_batches_too(tmp_path):
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text("trainer: {accumulate_grad_batches: 4}\ndata: {init_args: {batch_size: 8}}\n")
    assert steps_for_amount(matched("samples", 320), {"fit": str(recipe_file)}, {}, "mse-seed0") == 10


@pytest.mark.slow
def test_the_cost_of_a_step_is_that_of_all_batches_it_accumulates(tmp_path):
    make_toy_shards(tmp_path / "data", train=8, validation=2, held_out=2)
    words = ["--config", "toy/captioning_pretraining", "--run", str(tmp_path / "run"), "--data.batch_size", "2"]
    words += [f"--data.{split}={tmp_path / 'data' / split}" for split in ("train", "validation")]
    # Muon computes as much as a small batch.
    words += [
        "--model.llm.text_tokenizer",
        str(tmp_path / "data" / "text_tokenizer"),
        "--model.optimizer",
        "adamw",
    ]
    costs = []
    for batches in ("1", "3"):
        file = tmp_path / f"cost{batches}.json"
        assert measure_cost([str(file), *words, "--trainer.accumulate_grad_batches", batches]) == 0
        costs.append(json.loads(file.read_text()))
    # The optimizer steps once, captions differ by a few words.
    assert costs[1]["flops"] / costs[0]["flops"] == pytest.approx(3.0, rel=0.1)
    assert costs[1]["tokens"] / costs[0]["tokens"] == pytest.approx(3.0, rel=0.1)
    assert costs[0]["steps"] == costs[1]["steps"] == 4


def test_a_step_without_tokens_cannot_be_matched_by_them():
    with pytest.raises(UserError, match=r"trial 'a' has no tokens"):
        steps_for_amount(matched("tokens", 10), {}, {"a": {"tokens": 0.0}}, "a")


@pytest.mark.slow
def test_the_cost_of_a_step_counts_tokens_and_operations(tmp_path):
    make_toy_shards(tmp_path / "data", train=8, validation=2, held_out=2)
    words = ["--config", "toy/tokenizer_pretraining", "--run", str(tmp_path / "run"), "--data.batch_size", "2"]
    costs = []
    for width in ("64", "128"):
        more = [f"--data.{split}={tmp_path / 'data' / split}" for split in ("train", "validation")]
        more += ["--model.detokenizer.denoiser.width", width]
        assert measure_cost([str(tmp_path / "trial" / "cost.json"), *words, *more]) == 0
        costs.append(json.loads((tmp_path / "trial" / "cost.json").read_text()))
    assert costs[0]["tokens"] == 0
    assert costs[0]["flops"] < costs[1]["flops"]
    assert not (tmp_path / "run").exists()
