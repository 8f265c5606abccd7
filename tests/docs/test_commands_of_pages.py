"""Every command line that a page shows is one that its command takes: options exist, and values are of their types."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from divot_lightning.cli.data import COMMANDS as DATA_COMMANDS
from divot_lightning.cli.main import COMMANDS
from divot_lightning.inference.command_options import split_head_options
from divot_lightning.training.recipe_files import find_recipe, recipe_names
from divot_lightning.training.training_cli import SettingsOnly

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> list[str]:
    """Return the `divot` lines in a page's fences, without those that leave words out (`...`)."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    shell = "\n".join(code for language, code in blocks if language in ("", "text", "bash")).replace("\\\n", " ")
    lines = [line.partition(" #")[0].strip() for line in shell.splitlines() if line.startswith("divot ")]
    return [line for line in lines if "..." not in line]


LINES = sorted({line for page in PAGES for line in command_lines(page)})
FIT_LIKE = ("fit", "resume", "preflight")
SHIPPED = re.compile(rf"^divot ({'|'.join(FIT_LIKE)}) .*--config ({'|'.join(recipe_names())})(?= |$)")
OF_OTHER_PAGES = re.compile(r"laplace|colours|--config recipe\.yaml|--print_config$")
"""Parts and recipes that a page makes, which the tests of that page use; and a line that ends after printing."""


def command_of(line: str) -> str:
    return line.split()[1]


def test_many_lines_are_found():
    assert len(LINES) > 60
    assert {command_of(line) for line in LINES} >= {*FIT_LIKE, "ask", "generate", "evaluate", "ablate", "export"}


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line) not in FIT_LIKE])
def test_options_fit_the_command(line):
    _, command, *words = shlex.split(line)
    assert command in COMMANDS
    if command == "data":
        command, *words = words
        assert command in DATA_COMMANDS
        module = importlib.import_module(f"divot_lightning.cli.data.{command.replace('-', '_')}")
    else:
        module = importlib.import_module(f"divot_lightning.cli.{command}")
    if command in ("generate", "story"):
        words = split_head_options(words)[1]
    if hasattr(module, "parser"):
        module.parser().parse_args(words)


@pytest.mark.parametrize("line", [line for line in LINES if SHIPPED.search(line) and not OF_OTHER_PAGES.search(line)])
def test_options_fit_the_recipe(line):
    words = shlex.split(line)[2:]
    place = words.index("--config") + 1
    words[place] = str(find_recipe(words[place]))
    run = ["--run"] if command_of(line) == "resume" else []
    SettingsOnly([*run, *words], "divot fit", "start")
