"""The code of the pages about latents, denoisers and objectives runs, and passes its conformance suites."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from divot_lightning.parts.registries.kinds import find_registry

PARTS = Path(__file__).parents[2] / "docs" / "parts"


@pytest.mark.parametrize("kind", ["latents", "denoisers", "objectives"])
def test_the_part_of_the_page_passes_the_conformance_suite(kind, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (PARTS / f"{kind}.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "test_page.py").write_text("\n\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert "failed" not in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("kind", ["latents", "denoisers", "objectives"])
def test_the_page_has_every_installed_part(kind):
    page = (PARTS / f"{kind}.md").read_text(encoding="utf-8")
    assert [part.name for part in find_registry(kind).installed() if f"| `{part.name}` |" not in page] == []
