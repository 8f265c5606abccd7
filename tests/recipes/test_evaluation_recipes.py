"""Every shipped evaluation recipe says what it is for and holds settings that work."""

from pathlib import Path

import pytest

from divot_lightning.cli.evaluate import parser
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.parts.registries.kinds import BENCHMARKS
from divot_lightning.training.recipe_files import recipe_names, recipes_dir

RECIPES = [name for name in recipe_names() if name.startswith("evaluation/")]
HEADER = ["purpose", "command", "needs", "hardware", "expected", "paper"]


@pytest.mark.parametrize("name", RECIPES)
def test_header_says_what_it_is_for(name: str) -> None:
    lines = (recipes_dir() / f"{name}.yaml").read_text().splitlines()
    fields = [line[2:].split(":")[0] for line in lines if line.startswith("# ") and not line.startswith("#  ")]
    assert fields == HEADER
    assert f"--config {name}" in lines[1]


@pytest.mark.parametrize("name", RECIPES)
def test_settings_work_for_the_benchmark(name: str) -> None:
    words = ["RUN", "--config", str(recipes_dir() / f"{name}.yaml")]
    if name in ("evaluation/msvd_qa", "evaluation/activitynet_qa"):  # their headers say so
        words += ["--judge.url", "http://127.0.0.1/v1", "--judge.model", "m"]
    given = parser().instantiate(parser().parse_args(words))
    config = EvaluationConfig(**{field: given[field] for field in EvaluationConfig.__dataclass_fields__})
    find_benchmark(config)


def test_the_guide_names_every_benchmark() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "using" / "evaluation.md").read_text()
    ours = [part.name for part in BENCHMARKS.installed() if part.distribution == "divot-lightning"]
    assert [name for name in ours if f"`{name}`" not in guide] == []
