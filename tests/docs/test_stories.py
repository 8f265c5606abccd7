"""The code of docs/training/stories.md prints what the page shows; its commands exist, and it names every score."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from divot_lightning.cli.evaluate import parser as evaluate_parser
from divot_lightning.cli.story import parser as story_parser
from divot_lightning.evaluation.metrics.toy_story import ToyStory
from divot_lightning.training.recipe_files import recipe_names
from tests.divot_lightning.evaluation.conftest import tiny_run  # noqa: F401

PAGE = (Path(__file__).parents[2] / "docs" / "training" / "stories.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("tiny_run")
def test_the_code_of_the_page_runs_and_prints_what_it_shows(request, tmp_path, monkeypatch):
    run = request.getfixturevalue("tiny_run")
    monkeypatch.chdir(tmp_path)
    names, printed = {"run": run, "detokenizer": run}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
    assert "".join(re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)) == printed.getvalue()
    assert names["scores"]["toy-stories/story"] == 0.0
    assert (names["first"].colour, names["first"].speed) == (names["second"].colour, names["second"].speed)


def test_the_page_names_every_score():
    described = PAGE.partition("| score |")[2].partition("\n\n")[0]
    wanted = {re.sub(r"clip_\d+/\w+", "clip_1/all", name) for name in ToyStory().names}
    assert {name for name in wanted if f"`{name}`" not in described} == set()


def test_its_commands_and_recipes_exist():
    command = re.search(r"divot story (.*?)\s*#", PAGE.replace("\\\n", " ")).group(1)
    story_parser().parse_args(shlex.split(command))
    for words in re.findall(r"divot evaluate RUN (--benchmark [^`]*)`", PAGE):
        evaluate_parser().parse_args(["RUN", *shlex.split(words)])
    recipes = set(re.findall(r"`((?:toy|paper|ablations)/\w+)`", PAGE))
    assert {"toy/story_tuning", "paper/storytelling"} <= recipes <= set(recipe_names())
