"""Follows the pages of benchmarks, metrics and optimizers as a reader would, in an installation of its own."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from divot_lightning.testing import BenchmarkConformance, MetricConformance, OptimizerConformance
from tests.docs.test_heads import BLOCK, run

PAGES = Path(__file__).parents[2] / "docs" / "parts"
CASES = {
    "benchmarks": (BenchmarkConformance, r"^daylight +divot_benchmark_daylight\.Daylight +divot-benchmark-daylight "),
    "metrics": (MetricConformance, r"^flicker +divot_metric_flicker\.Flicker +divot-metric-flicker +0\.1\.0 "),
    "optimizers": (OptimizerConformance, r"^lion +divot_optimizer_lion\.LionOptimizer +divot-optimizer-lion +0\.1\.0 "),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The distributions of all three pages, installed beside this environment."""
    folder = tmp_path_factory.mktemp("pages")
    for kind in CASES:
        for title, code in blocks_of(kind).items():
            if "." in title:
                path = folder / kind / title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(code)
        assert blocks_of(kind)["install"].split() == ["pip", "install", "--no-deps", "-e", "."]
    folders = " ".join(f"./{kind}" for kind in CASES)
    run(folder, f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --target site {folders}")
    return folder


def blocks_of(kind):
    return {title: code for _, title, code in BLOCK.findall((PAGES / f"{kind}.md").read_text())}


@pytest.mark.parametrize("kind", CASES)
def test_commands_of_the_page_list_the_part_and_pass_its_conformance_tests(folder, kind):
    conformance, row = CASES[kind]
    listing, tests = blocks_of(kind)["check"].strip().splitlines()
    shown = run(folder, listing)
    assert re.search(row, shown, re.MULTILINE)
    assert "broken" not in shown
    num_tests = sum(name.startswith("test_") for name in dir(conformance))
    assert f" {num_tests} passed" in f" {run(folder, tests.replace('tests', f'{kind}/tests'))}"


def test_the_recipe_of_the_page_chooses_the_optimizer(folder):
    words = "--config toy/llm_pretraining --config optimizers/recipe.yaml --print_config"
    shown = yaml.safe_load(run(folder, f"divot fit {words}"))["model"]["init_args"]["optimizer"]
    assert shown["class_path"] == "divot_optimizer_lion.LionOptimizer"
    assert (shown["init_args"]["lr"], shown["init_args"]["schedule"]) == (3e-4, "linear")


def test_python_blocks_of_the_pages_all_have_a_title():
    for kind in CASES:
        assert "```python\n" not in (PAGES / f"{kind}.md").read_text()
