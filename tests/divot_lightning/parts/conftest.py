import importlib
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def install(tmp_path, monkeypatch) -> Callable[..., None]:
    """Return a function that installs a distribution with one part, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def add(distribution: str, entry: str, source: str, version: str = "1.0", kind: str = "heads") -> None:
        module = entry.partition("=")[2].partition(":")[0].strip()
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[divot_lightning.{kind}]\n{entry}\n")
        importlib.invalidate_caches()

    yield add
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
