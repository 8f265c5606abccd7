"""The code of docs/using/exporting.md runs, on a tiny run."""

import re
from pathlib import Path

import pytest

from divot_lightning.cli.export import parser
from tests.divot_lightning.inference.conftest import llm_run  # noqa: F401

PAGE = (Path(__file__).parents[2] / "docs" / "using" / "exporting.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("llm_run")
def test_the_code_of_the_page_runs(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"run": request.getfixturevalue("llm_run")}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert names["logits"].shape[-1] == len(names["text_tokenizer"])
    assert not names["tokenizer"].training


def test_the_page_names_every_option_of_the_command():
    options = {name for action in parser()._actions for name in action.option_strings if name.startswith("--")}
    assert options - {"--help"} <= set(re.findall(r"--[a-z][a-z-]+", PAGE))
