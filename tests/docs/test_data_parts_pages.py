"""Follows the pages of data sources and of tasks as a reader would, in a folder and an installation of its own."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from divot_lightning.testing import SourceConformance, TaskConformance
from tests.docs.test_heads import BLOCK, run

PAGES = Path(__file__).parents[2] / "docs" / "parts"
CASES = {
    "sources": (SourceConformance, r"^csv +divot_source_csv\.CsvSource +divot-source-csv +0\.1\.0 "),
    "tasks": (TaskConformance, r"^title +divot_task_title\.TitleTask +divot-task-title +0\.1\.0 "),
}


@pytest.fixture(scope="module", params=CASES)
def project(request, tmp_path_factory):
    """The page's name, its blocks by title, and its distribution, installed beside this environment."""
    folder = tmp_path_factory.mktemp(request.param)
    blocks = {title: code for _, title, code in BLOCK.findall((PAGES / f"{request.param}.md").read_text())}
    for title, code in blocks.items():
        if "." in title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(code)
    assert blocks["install"].split() == ["pip", "install", "--no-deps", "-e", "."]
    run(folder, f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --target site .")
    return request.param, blocks, folder


def test_commands_of_the_page_list_the_part_and_pass_its_conformance_tests(project):
    kind, blocks, folder = project
    conformance, row = CASES[kind]
    listing, tests = blocks["check"].strip().splitlines()
    shown = run(folder, listing)
    assert re.search(row, shown, re.MULTILINE)
    assert "broken" not in shown
    num_tests = sum(name.startswith("test_") for name in dir(conformance))
    assert f" {num_tests} passed" in f" {run(folder, tests)}"


def test_recipes_of_the_page_are_taken(project):
    kind, blocks, folder = project
    recipe = {"sources": "toy/tokenizer_pretraining", "tasks": "toy/llm_pretraining"}[kind]
    for file in (title for title in blocks if title.endswith(".yaml")):
        shown = yaml.safe_load(run(folder, f"divot fit --config {recipe} --config {file} --print_config"))
        given, data = yaml.safe_load(blocks[file])["data"]["init_args"], shown["data"]["init_args"]
        if kind == "tasks":
            assert data["tasks"] == given["tasks"]
            assert data["template"] == given["template"]
        else:
            source = {"class_path": "divot_source_csv.CsvSource", "init_args": {"path": "data/mine/list.csv"}}
            assert data["train"][1]["source"]["class_path"] == source["class_path"]
            assert data["train"][1]["source"]["init_args"]["path"] == source["init_args"]["path"]
            assert data["train"][0]["path"] == "data/toy/train"


def test_python_blocks_of_the_pages_all_have_a_title():
    for kind in CASES:
        assert "```python\n" not in (PAGES / f"{kind}.md").read_text()
