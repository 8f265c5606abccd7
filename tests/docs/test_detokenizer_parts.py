"""The code of the pages about latents, denoisers and objectives runs, and passes its conformance suites."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from divot_lightning.parts.registries.kinds import find_registry

PARTS = Path(__file__).parents[2] / "docs" / "parts"


KINDS = ["latents", "denoisers", "objectives"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What pytest writes about the code of all pages, with a line per test."""
    folder = tmp_path_factory.mktemp("pages")
    for kind in KINDS:
        blocks = re.findall(r"```python\n(.*?)```", (PARTS / f"{kind}.md").read_text(encoding="utf-8"), re.DOTALL)
        (folder / f"test_{kind}.py").write_text("\n\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_part_of_the_page_passes_the_conformance_suite(kind, lines):
    told = [line for line in lines if f"test_{kind}.py" in line]
    assert any(line.startswith("PASSED") for line in told), "\n".join(lines)[-4000:]
    assert not any(line.startswith(("FAILED", "ERROR")) for line in told), "\n".join(lines)[-4000:]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_every_installed_part(kind):
    page = (PARTS / f"{kind}.md").read_text(encoding="utf-8")
    assert [part.name for part in find_registry(kind).installed() if f"| `{part.name}` |" not in page] == []
