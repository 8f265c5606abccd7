"""Follows the pages whose parts are distributions of their own as a reader would, installed beside this environment.

What the pages show starts many processes that import torch, which takes most of their time. Here one listing is such a
process; other listings, tests and recipes run in this one.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.cli.main import main
from divot_lightning.testing import (
    BenchmarkConformance,
    HeadConformance,
    MetricConformance,
    OptimizerConformance,
    SourceConformance,
    TaskConformance,
)
from tests.helpers.nested_pytest import passed_tests

PAGES = Path(__file__).parents[2] / "docs" / "parts"
BLOCK = re.compile(r"^```(\w+) title=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CASES: dict[str, tuple[type, str]] = {
    "heads": (HeadConformance, r"^laplace +divot_head_laplace\.LaplaceHead +divot-head-laplace +0\.1\.0 "),
    "sources": (SourceConformance, r"^csv +divot_source_csv\.CsvSource +divot-source-csv +0\.1\.0 "),
    "tasks": (TaskConformance, r"^title +divot_task_title\.TitleTask +divot-task-title +0\.1\.0 "),
    "benchmarks": (BenchmarkConformance, r"^daylight +divot_benchmark_daylight\.Daylight +divot-benchmark-daylight "),
    "metrics": (MetricConformance, r"^flicker +divot_metric_flicker\.Flicker +divot-metric-flicker +0\.1\.0 "),
    "optimizers": (OptimizerConformance, r"^lion +divot_optimizer_lion\.LionOptimizer +divot-optimizer-lion +0\.1\.0 "),
}
MORE_TESTS = {"heads": 1}
"""Tests of a page besides those of the conformance suite."""


def blocks_of(kind: str) -> dict[str, str]:
    """Return a page's code blocks by title."""
    return {title: code for _, title, code in BLOCK.findall((PAGES / f"{kind}.md").read_text())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distribution of each page, and `site`, where all of them are installed."""
    folder = tmp_path_factory.mktemp("pages")
    for kind in CASES:
        for title, code in blocks_of(kind).items():
            if "." in title:
                path = folder / kind / title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(code)
        assert blocks_of(kind)["install"].split() == ["pip", "install", "--no-deps", "-e", "."]
    folders = " ".join(f"./{kind}" for kind in CASES)
    _shell(folder, f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --target site {folders}")
    return folder


def _shell(folder: Path, command: str) -> str:
    """Run a command line in the folder as if the distributions were installed here; return what it writes."""
    environment = os.environ | {
        "PYTHONPATH": str(folder / "site"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process with the distributions installed; gives the folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder / "site"))
    monkeypatch.setattr(sys, "argv", ["divot"])
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def test_commands_of_a_page_are_those_of_a_terminal(installed: Path) -> None:
    shown = _shell(installed, blocks_of("heads")["check"].splitlines()[0])
    assert re.search(CASES["heads"][1], shown, re.MULTILINE)
    assert "Predicts a location and a scale per feature." in shown
    assert "broken" not in shown


@pytest.mark.parametrize("kind", CASES)
def test_commands_of_the_page_list_the_part_and_pass_its_conformance_tests(
    kind: str, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conformance, row = CASES[kind]
    listing, tests = blocks_of(kind)["check"].strip().splitlines()
    assert listing.split()[0] == "divot"
    assert main(listing.split()[1:]) == 0
    shown = capsys.readouterr().out
    assert re.search(row, shown, re.MULTILINE)
    assert "broken" not in shown

    monkeypatch.chdir(installed / kind)
    assert tests.split() == ["python", "-m", "pytest", "tests"]
    num_tests = MORE_TESTS.get(kind, 0) + sum(name.startswith("test_") for name in dir(conformance))
    assert len(passed_tests("tests")) == num_tests


def _printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return the settings that `divot fit` prints, of the model and of the data."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words, "--print_config"])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    return {name: shown[name]["init_args"] for name in ("model", "data")}


@pytest.mark.parametrize("words", ["--model.head laplace", "--model.head LaplaceHead", "--config heads/recipe.yaml"])
def test_recipe_and_options_of_the_page_choose_the_head(
    words: str, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(installed)
    options = f"{words} --model.head.smallest_scale 0.02"
    shown = _printed(capsys, "--config", "toy/llm_pretraining", *options.split())
    assert shown["model"]["head"] == {
        "class_path": "divot_head_laplace.LaplaceHead",
        "init_args": {"smallest_scale": 0.02},
    }


def test_recipe_of_the_page_chooses_the_source(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(installed)
    data = _printed(capsys, "--config", "toy/tokenizer_pretraining", "--config", "sources/recipe.yaml")["data"]
    assert data["train"][1]["source"]["class_path"] == "divot_source_csv.CsvSource"
    assert data["train"][1]["source"]["init_args"]["path"] == "data/mine/list.csv"
    assert data["train"][0]["path"] == "data/toy/train"


@pytest.mark.parametrize("file", ["phrases.yaml", "recipe.yaml"])
def test_recipes_of_the_page_choose_the_task(
    file: str, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(installed)
    given = yaml.safe_load(blocks_of("tasks")[file])["data"]["init_args"]
    data = _printed(capsys, "--config", "toy/llm_pretraining", "--config", f"tasks/{file}")["data"]
    assert (data["tasks"], data["template"]) == (given["tasks"], given["template"])


def test_recipe_of_the_page_chooses_the_optimizer(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(installed)
    words = ("--config", "toy/llm_pretraining", "--config", "optimizers/recipe.yaml")
    optimizer = _printed(capsys, *words)["model"]["optimizer"]
    assert optimizer["class_path"] == "divot_optimizer_lion.LionOptimizer"
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["schedule"]) == (3e-4, "linear")


@pytest.mark.parametrize("kind", CASES)
def test_python_blocks_of_the_page_all_have_a_title(kind: str) -> None:
    assert "```python\n" not in (PAGES / f"{kind}.md").read_text()


def test_shell_blocks_of_the_page_of_heads_all_have_a_title() -> None:
    assert "```bash\n" not in (PAGES / "heads.md").read_text()
