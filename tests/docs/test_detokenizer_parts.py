"""The code of the pages about latents, denoisers and objectives runs, and passes its conformance suites."""

import re
import sys
from pathlib import Path

import pytest

from divot_lightning.parts.registries.kinds import find_registry
from tests.helpers.nested_pytest import passed_tests

PARTS = Path(__file__).parents[2] / "docs" / "parts"
KINDS = ["latents", "denoisers", "objectives"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_part_of_the_page_passes_the_conformance_suite(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    blocks = re.findall(r"```python\n(.*?)```", (PARTS / f"{kind}.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / f"test_page_of_{kind}.py").write_text("\n\n".join(blocks), encoding="utf-8")
    assert len(passed_tests(f"test_page_of_{kind}.py")) > 3
    del sys.modules[f"test_page_of_{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_every_installed_part(kind):
    page = (PARTS / f"{kind}.md").read_text(encoding="utf-8")
    assert [part.name for part in find_registry(kind).installed() if f"| `{part.name}` |" not in page] == []
