"""What is wrong with the settings of a training step is found without training it."""

from pathlib import Path

from divot_lightning.experiments.plan.commands import MEASURE
from divot_lightning.experiments.plan.settings_check import main, wrong_settings
from divot_lightning.experiments.runner.steps import Step

LLM = ("python", "-m", "divot_lightning", "fit", "--config", "toy/llm_pretraining", "--run", "never")


def test_only_steps_with_wrong_settings_are_named_and_nothing_is_built():
    steps = [
        Step("data", ("divot", "data", "toy", "--trian", "3")),  # does not train: not looked at
        Step("right", (*LLM, "--data.train", "not/made/yet", "--model.previous", "nor/this"), run=Path("never")),
        Step("key", (*LLM, "--model.head", "gmm", "--model.head.num_componentss", "3"), run=Path("never")),
        Step("head", (*LLM, "--model.head", "nohead"), run=Path("never")),
        Step("recipe", ("divot", "fit", "--config", "toy/nothing"), run=Path("never")),
        Step("scores", (*MEASURE, '[{"benchmark": "toy", "run": "r", "data": "x", "output": "y", "limitt": 3}]')),
    ]
    wrong = wrong_settings(steps)
    assert list(wrong) == ["key", "head", "recipe", "scores"]
    assert "'model.head.num_componentss' is no setting of GMMHead. Did you mean 'num_components'?" in wrong["key"]
    assert wrong["head"].startswith("head 'nohead' is not installed")
    assert "toy/nothing" in wrong["recipe"]
    assert "'limitt' is no setting" in wrong["scores"]
    assert "Did you mean 'limit'?" in wrong["scores"]


def test_nothing_to_look_at_starts_no_process(monkeypatch):
    monkeypatch.setattr("divot_lightning.experiments.plan.settings_check.CHECK", ("false",))
    assert wrong_settings([Step("data", ("divot", "data", "toy"))]) == {}


def test_a_class_that_breaks_while_its_settings_are_read_is_one_wrong_step_of_many(monkeypatch):
    def read(words, command, mode):
        if "broken" in words:
            raise RuntimeError("no such\nlibrary")

    monkeypatch.setattr("divot_lightning.training.training_cli.SettingsOnly", read)
    assert main({"right": ["fit", "--run", "a"], "other": ["fit", "--run", "broken"]}) == {
        "other": "RuntimeError: no such library"
    }
