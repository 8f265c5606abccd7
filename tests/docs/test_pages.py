"""What README, CONTRIBUTING and the index of the pages show is there, and fits the code."""

import re
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import yaml

import divot_lightning
from divot_lightning.cli.data import COMMANDS as DATA_COMMANDS
from divot_lightning.cli.main import COMMANDS
from divot_lightning.inference import pipeline as pipeline_module

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
SHELL = "\n".join(code for language, code in BLOCKS if not language).replace("\\\n", " ")
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))


def links(text: str) -> list[str]:
    """The relative links and pictures of a page, without the part behind `#`."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda path: path.name)
def test_links_lead_to_files(page):
    assert [target for target in links(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()] == []


def test_the_index_links_every_page():
    linked = set(links((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES if path.parent.name != "api"}
    assert pages - linked == {"index.md"}
    assert "api/index.md" in linked


def test_the_site_has_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = re.findall(r"[\w/]+\.md", str(nav))
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in PAGES)


def test_the_api_reference_has_every_module_of_parts_of_their_packages_and_of_public_names():
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES if path.parent.name == "api")
    folders = {
        "divot_lightning/parts": ROOT,
        "divot_lightning/testing": ROOT,
        "divot_backbones": ROOT / "plugins",
        "divot_heads": ROOT / "plugins",
        "divot_optimizers": ROOT / "plugins",
    }
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for folder, root in folders.items()
        for path in (root / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert len(modules) > 50
    public = {f"divot_lightning.{module}" for module in divot_lightning._MODULE_OF.values()}
    assert (modules | public) - set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE)) == set()


def test_commands_of_the_readme_exist():
    named = re.findall(r"^divot (\S+)(?: (\w+))?", SHELL, re.MULTILINE)
    assert {"fit", "ask", "generate", "data"} <= {command for command, _ in named}
    assert {command for command, _ in named} <= set(COMMANDS)
    assert {word for command, word in named if command == "data"} <= set(DATA_COMMANDS)


def test_every_command_stands_in_the_readme():
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    assert [name for name in COMMANDS if f"`divot {name}" not in table] == []


def test_python_lines_of_the_readme_call_what_exists(monkeypatch):
    (code,) = [code for language, code in BLOCKS if language == "python"]
    double = create_autospec(pipeline_module.DivotPipeline)
    instance = create_autospec(pipeline_module.DivotPipeline, instance=True)
    double.from_pretrained.return_value = instance
    instance.generate.return_value, instance.ask.return_value = "clips", "red"
    monkeypatch.setattr(divot_lightning, "DivotPipeline", double)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (names["clips"], names["answer"]) == ("clips", "red")
