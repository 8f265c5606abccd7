"""What README, CONTRIBUTING and the index of the pages show is there, and fits the code."""

import re
from collections import Counter
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
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def links(text: str) -> list[str]:
    """The relative links and pictures of a page, without the part behind `#`."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in PAGES)])
def test_links_lead_to_files(name):
    page = ROOT / name
    assert [target for target in links(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()] == []


def linked_pages(page: Path) -> set[str]:
    """What a page links, as paths in `docs`."""
    targets = [(page.parent / target).resolve() for target in links(page.read_text(encoding="utf-8"))]
    return {str(target.relative_to(DOCS)) for target in targets if target.is_relative_to(DOCS)}


def test_the_index_links_every_page_and_the_page_of_ablations_every_table():
    pages = {str(path.relative_to(DOCS)) for path in PAGES if path.parent.name != "api"}
    tables = {page for page in pages if re.match(r"ablations/\w+/", page)}
    assert len(tables) > 5
    assert pages - tables - linked_pages(DOCS / "index.md") == {"index.md"}
    assert tables - linked_pages(DOCS / "ablations" / "index.md") == set()
    assert "api/index.md" in linked_pages(DOCS / "index.md")


def test_no_folder_of_pages_holds_more_than_fifteen_files():
    files = [path for path in DOCS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {folder: number for folder, number in Counter(path.parent for path in files).items() if number > 15} == {}


def test_the_site_has_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = re.findall(r"[\w/]+\.md", str(nav))
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in PAGES)


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
