"""A recipe of a stage that trains in milliseconds, in a working directory of its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.cli.main import main

TINY = Path(__file__).parent


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a recipe that trains; the working directory is empty and recipes may name `tiny_stage`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TINY)
    return {
        "run": "runs/tiny",
        "trainer": {"max_steps": 6, "log_every_n_steps": 2, "accelerator": "cpu"},
        "checkpoint": {"every_steps": 4},
        "model": {"class_path": "tiny_stage.TinyStage", "init_args": {"optimizer": {"lr": 0.01}}},
        "data": {"class_path": "tiny_stage.TinyData", "init_args": {"train": "here", "clips": {"size": 4}}},
    }


@pytest.fixture
def divot(tmp_path: Path) -> Callable[..., int]:
    """Run a `divot` command; a dictionary among the words becomes a recipe, `--config` before it."""

    def run(*words: str | dict[str, Any]) -> int:
        argv: list[str] = []
        for number, word in enumerate(words):
            if isinstance(word, dict):
                recipe = tmp_path / f"recipe_{number}.yaml"
                recipe.write_text(yaml.safe_dump(word))
                argv += ["--config", str(recipe)]
            else:
                argv.append(word)
        return main(argv)

    return run


@pytest.fixture(autouse=True)
def _no_words_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["divot"])
