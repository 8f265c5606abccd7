"""Bad input: at most five lines that name the thing and the way out, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Divot = Callable[..., int]
Settings = dict[str, Any]
RUN = Path("runs/tiny")


@pytest.fixture
def refused(divot: Divot, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; return the message."""

    def run(*words: str | Settings) -> str:
        assert divot(*words) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert len(message.splitlines()) <= 5
        assert not RUN.exists()
        return message

    return run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--model.widthh", "3"],
            ["'model.widthh'", "TinyStage", "Did you mean 'width'?", "allowed here: optimizer, width"],
        ),
        (["--model.optimizer.lrr", "3"], ["'model.optimizer.lrr'", "Did you mean 'lr'?", "lr, betas"]),
        (["--data.clips.sizee", "3"], ["'data.clips.sizee'", "TinyData", "size, names"]),
        (["--trainer.max_step", "3"], ["'trainer.max_step'", "Did you mean 'max_steps'?"]),
        (["--modle.width", "3"], ["'modle'", "Did you mean 'model'?"]),
        (["--model.width", "wide"], ["'model.width' is 'wide'; it must be a whole number"]),
        (["--data.train", "{a: 1}"], ["'data.train'", "str", "list", "given: {'a': 1}"]),
        (["--trainer.precision", "3"], ["'trainer.precision' is '3'", "'bf16-mixed'"]),
        (["--data.clips", "3"], ["'data.clips' is 3", "size, names"]),
        (["--model", "tiny_stage.TinyStag"], ["tiny_stage.TinyStag", "'tiny_stage' has no attribute"]),
        (
            ["--model", "no_such_module.Stage"],
            ["No module named 'no_such_module'", "\ninstall the package no_such_module, or"],
        ),
        (["--model.head", "my_heads.Nice"], ["No module named 'my_heads'", "\ninstall the package my_heads, or"]),
        (["--model", "TinyStag"], ["'model'", "dot import path", "TinyStag"]),
        (["--model.head", "gmn"], ["'gmn'", "installed:", "gmm, meanflow, mse", "Did you mean 'gmm'?"]),
        (["--model.head", "divot_heads.gmn.GMMHead"], ["divot_heads.gmn.GMMHead", "cannot be imported"]),
        (
            ["--model.head", "gmm", "--model.head.num_component", "3"],
            ["'model.head.num_component'", "'num_components'"],
        ),
        (["--model.previous", "runs/nowhere"], ["there is no run folder runs/nowhere"]),
        (["--data.train", "missing"], ["there are no shards in missing"]),
        (
            ["--trainer.strategy", "teleport"],
            ["trainer.strategy is 'teleport'; choose auto, ddp or one of: ", "divot_zero2"],
        ),
        (["--seed_everything", "-1"], ["seed_everything is -1; give 0 to 4294967295"]),
        (["stray"], ["'stray'", "--key value"]),
        (["--config", "toy/llm_pretrainin"], ["'toy/llm_pretrainin'", "toy/llm_pretraining"]),
        (["--config"], ["--config needs a recipe"]),
    ],
)
def test_command_line(refused: Callable[..., str], tiny: Settings, words: list[str], told: list[str]) -> None:
    message = refused("fit", tiny, *words)
    for words_told in told:
        assert words_told in message


def test_validations_further_apart_than_an_epoch(refused: Callable[..., str], tiny: Settings) -> None:
    tiny["data"]["class_path"] = "tiny_stage.FiniteData"
    shown = refused("fit", tiny, "--trainer.val_check_interval", "300")
    assert "`val_check_interval` (300) must be less than or equal" in shown
    assert "--trainer.val_check_interval 1.0" in shown


def test_a_head_in_the_current_folder_is_not_imported_and_the_message_says_how(
    refused: Callable[..., str], tiny: Settings
) -> None:
    Path("my_heads.py").write_text("raise SystemExit('it was run')")
    assert "PYTHONPATH=. divot" in refused("fit", tiny, "--model.head", "my_heads.Nice")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there(refused: Callable[..., str], tiny: Settings, accelerator: str) -> None:
    shown = refused("fit", tiny, "--trainer.accelerator", accelerator)
    assert f"torch {torch.__version__} finds no GPU here; without one: --trainer.accelerator cpu" in shown


def test_unknown_keys_in_a_recipe(refused: Callable[..., str], tiny: Settings) -> None:
    assert "'learning_rate' is no setting" in refused("fit", {**tiny, "learning_rate": 1})
    tiny["model"]["init_args"]["optimiser"] = tiny["model"]["init_args"].pop("optimizer")
    assert "'model.optimiser' is no setting of TinyStage. Did you mean 'optimizer'?" in refused("fit", tiny)


@pytest.mark.parametrize("key", ["run", "model", "data"])
def test_a_missing_key_is_named(refused: Callable[..., str], tiny: Settings, key: str) -> None:
    del tiny[key]
    assert f"not set: {key}" in refused("fit", tiny)


def test_a_missing_setting_of_the_stage_is_named(refused: Callable[..., str], tiny: Settings) -> None:
    del tiny["data"]["init_args"]["train"]
    assert "not set: data.train" in refused("fit", tiny)


def test_without_a_recipe_the_shipped_ones_are_listed(refused: Callable[..., str]) -> None:
    assert "toy/tokenizer_pretraining" in refused("fit")


@pytest.mark.parametrize(
    ("text", "told"), [("a: [1\nb: :", "line 2"), ("just words", "just words"), ("\x00", "is no YAML")]
)
def test_a_recipe_that_is_no_yaml(refused: Callable[..., str], tmp_path: Path, text: str, told: str) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(text)
    message = refused("fit", "--config", str(recipe))
    assert "broken.yaml" in message
    assert told in message


def test_a_folder_with_another_run_is_left_alone(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert divot("fit", tiny) == 2
    message = capsys.readouterr().err
    assert f"{RUN} already holds another run (finished)" in message
    assert f"divot resume {RUN}" in message
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_a_folder_with_other_files_is_left_alone(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    RUN.mkdir(parents=True)
    (RUN / "holiday.jpg").touch()
    assert divot("fit", tiny) == 2
    assert "holiday.jpg" in capsys.readouterr().err
    assert divot("fit", tiny, "--run", str(RUN / "holiday.jpg")) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_run_that_fails_in_its_first_step_leaves_nothing(divot: Divot, tiny: Settings) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        divot("fit", tiny, "--model.width", "3")
    assert not RUN.exists()
