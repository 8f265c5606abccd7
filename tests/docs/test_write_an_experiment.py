"""The recipe and the code of docs/write_an_experiment.md work."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import load_recipe, parse_recipe
from divot_lightning.experiments.plan.settings_check import main as wrong_settings_of
from divot_lightning.experiments.runner.steps import check_plan
from tests.helpers.fake_services import install_wandb

PAGE = (Path(__file__).parents[2] / "docs" / "write_an_experiment.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_recipe_of_the_page_can_be_planned(tmp_path):
    block, _ = blocks("yaml")
    steps = make_grid(parse_recipe(yaml.safe_load(block)), tmp_path).all_steps()
    check_plan(steps)
    assert len(steps) == 1 + 6 + 6


def test_the_logger_of_the_page_is_accepted(tmp_path, monkeypatch):
    install_wandb(monkeypatch)
    recipe, logger = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(recipe + logger)
    grid = make_grid(load_recipe(str(tmp_path / "mine.yaml")), tmp_path)
    command = grid.steps["w128-seed1"]["tokenizer"].step.command
    assert command[command.index("--trainer.logger") + 1] == "wandb"
    assert wrong_settings_of({"tokenizer": command}) == {}


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["best"].trial.group == "icosahedron"
    rows = list(csv.DictReader(Path("dice/results.csv").read_text().splitlines()))
    assert {row["die"]: float(row["value"]) for row in rows} == {"cube": 6.0, "icosahedron": 20.0}
    assert "20.0" in Path("dice/table.tex").read_text()
    assert "Dice" in Path("dice/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["fit", "divot", "measure", "command", "folder", "only", "extends", "matched_by"])
def test_the_page_explains_every_key(key):
    assert f"`{key}:" in PAGE
