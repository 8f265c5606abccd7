"""Follows docs/parts/heads.md as a reader would, in a folder and a place of installation of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from divot_lightning.cli.main import main
from divot_lightning.testing import HeadConformance

GUIDE = Path(__file__).parents[2] / "docs" / "parts" / "heads.md"
BLOCK = re.compile(r"^```(\w+) title=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The guide's code blocks by title."""
    return {title: code for _, title, code in BLOCK.findall(GUIDE.read_text())}


@pytest.fixture(scope="module")
def project(blocks, tmp_path_factory) -> Path:
    """The guide's distribution, written and installed beside this environment, not into it."""
    folder = tmp_path_factory.mktemp("divot-head-laplace")
    for title, code in blocks.items():
        if "." in title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(code)
    assert blocks["install"].split() == ["pip", "install", "--no-deps", "-e", "."]
    run(folder, f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --target site .")
    return folder


def run(folder: Path, command: str) -> str:
    """Runs a command line in the folder as if the distribution were installed here; returns what it writes."""
    environment = os.environ | {
        "PYTHONPATH": str(folder / "site"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_commands_of_the_guide_list_the_head_and_pass_its_conformance_tests(project, blocks):
    heads, tests = blocks["check"].strip().splitlines()
    shown = run(project, heads)
    assert re.search(r"^laplace +divot_head_laplace\.LaplaceHead +divot-head-laplace +0\.1\.0 ", shown, re.MULTILINE)
    assert "Predicts a location and a scale per feature." in shown
    assert "broken" not in shown
    num_tests = 1 + sum(name.startswith("test_") for name in dir(HeadConformance))
    assert f" {num_tests} passed" in run(project, tests)


@pytest.fixture
def installed(project, monkeypatch) -> Iterator[None]:
    """This process in the folder of the project, with the distribution installed."""
    monkeypatch.syspath_prepend(str(project / "site"))
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["divot"])
    yield
    sys.modules.pop("divot_head_laplace", None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("words", ["--model.head laplace", "--model.head LaplaceHead", "--config recipe.yaml"])
def test_recipe_and_options_of_the_guide_choose_the_head(words, capsys):
    options = f"{words} --model.head.smallest_scale 0.02 --print_config"
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "toy/llm_pretraining", *options.split()])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["head"] == {
        "class_path": "divot_head_laplace.LaplaceHead",
        "init_args": {"smallest_scale": 0.02},
    }


def test_python_blocks_of_the_guide_all_have_a_title():
    assert "```python\n" not in GUIDE.read_text()
    assert "```bash\n" not in GUIDE.read_text()
