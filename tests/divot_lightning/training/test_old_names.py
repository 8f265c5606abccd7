"""Recipes, options and run folders of an earlier version are refused with the new names."""

from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.training.recipe_files import find_recipe, recipes_dir
from divot_lightning.training.runs import resume
from divot_lightning.training.training_cli import SettingsOnly

RECIPE = recipes_dir() / "toy/tokenizer_pretraining.yaml"
NEW_STAGE = "divot_lightning.training.stages.tokenizer_pretraining.TokenizerPretraining"
OLD_STAGE = "divot_lightning.stages.tokenizer_pretraining.TokenizerPretraining"


def old_recipe(folder: Path, name: str = "old.yaml") -> Path:
    file = folder / name
    text = RECIPE.read_text(encoding="utf-8").replace(NEW_STAGE, OLD_STAGE)
    file.write_text(text.replace("terminal_timestep_prob", "terminal_share"), encoding="utf-8")
    return file


def message_of(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        SettingsOnly(list(words), "divot fit", "start")
    assert len(str(raised.value).splitlines()) <= 5
    return str(raised.value)


def test_the_recipe_with_new_names_is_read():
    cli = SettingsOnly(["--config", str(RECIPE)], "divot fit", "start")
    assert cli.config.model.class_path == NEW_STAGE


def test_an_old_recipe_is_refused_with_its_file_and_every_new_name(tmp_path):
    text = message_of("--config", str(old_recipe(tmp_path)))
    assert str(tmp_path / "old.yaml") in text
    assert f"{OLD_STAGE} is now {NEW_STAGE}" in text
    assert "model.init_args.terminal_share is now terminal_timestep_prob" in text
    assert "Write the new names into that file" in text


def test_an_old_run_folder_is_refused_with_its_file_and_every_new_name(tmp_path):
    old_recipe(tmp_path, "config.yaml")
    with pytest.raises(UserError, match="terminal_share is now terminal_timestep_prob") as raised:
        resume(tmp_path, ["--config", str(tmp_path / "config.yaml")])
    assert str(tmp_path / "config.yaml") in str(raised.value)


@pytest.mark.parametrize(
    ("option", "new"),
    [
        ("model.terminal_share", "model.terminal_timestep_prob"),
        ("model.init_args.terminal_share_end", "model.terminal_timestep_prob_end"),
        ("data.train_share", "data.train_fraction"),
        ("data.max_bad_fraction", "data.max_skipped_fraction"),
        ("data.max_bad_samples", "data.max_skipped_samples"),
        ("data.ledger_folder", "data.skipped_folder"),
    ],
)
def test_an_old_option_is_refused_with_the_new_one(option, new):
    old = option.replace("init_args.", "")
    assert f"{old!r} is now {new!r}" in message_of("--config", str(RECIPE), f"--{option}", "1")


def test_an_old_option_of_a_group_is_refused_with_the_new_one():
    recipe = str(recipes_dir() / "toy/llm_pretraining.yaml")
    text = message_of("--config", recipe, "--model.llm.mechanism", "query_causal")
    assert "'model.llm.mechanism' is now 'model.llm.generation_mode'" in text


def test_an_old_class_path_on_the_command_line_is_refused_with_the_new_one():
    assert f"{OLD_STAGE} is now {NEW_STAGE}" in message_of("--config", str(RECIPE), "--model", OLD_STAGE)


def test_a_renamed_recipe_is_explained():
    with pytest.raises(UserError, match="is now 'ablations/generation_mode'"):
        find_recipe("ablations/mechanism")
