"""Nothing in a stranger's folder is imported, whatever its files name and wherever a command is started."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.part import PartSpec
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.parts.registries.registry import class_path
from divot_lightning.parts.registries.trusted_classes import require_trusted

PAYLOAD = "from pathlib import Path\n\nPath({marker!r}).touch()\n"
STRANGE = ["payload.X", "divot_payload.X", "unittest.__main__.x", "antigravity.x", "torch.nn.Linear", "X", "", ".X"]


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that appears if a module in a stranger's folder, the working directory, is imported."""
    marker = tmp_path / "was-run"
    for name in ("payload.py", "divot_payload.py", "divot_heads/__init__.py", "divot_heads/payload.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAYLOAD.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIVOT_TRUSTED_PACKAGES", raising=False)
    return marker


def _component(folder: Path, class_path: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"class": class_path, "config": {}}))
    return folder


@pytest.mark.parametrize("class_path", STRANGE)
def test_a_strange_class_of_a_component_is_refused_before_it_is_imported(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_path: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder, before = _component(tmp_path / "run/tokenizer", class_path), set(sys.modules)
    for load in (
        lambda: load_component(folder, nn.Module),
        lambda: read_settings(folder, VideoTokenizer, TokenizerConfig),
        lambda: PartSpec(class_path).build(HEADS, "the stored video LLM", hidden_dim=8, feature_dim=8),
    ):
        with pytest.raises(UserError, match="is not imported") as caught:
            load()
        assert repr(class_path) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 5
    assert not marker.exists()
    assert {name.partition(".")[0] for name in set(sys.modules) - before}.isdisjoint({"payload", "antigravity"})


AS_PYTHON_M = """
import os, runpy, sys
del sys.path[0]
for run in sys.argv[1:]:
    sys.path[:0], sys.argv = [os.getcwd()], ["divot", "ask", run, "x.mp4"]
    try:
        runpy.run_module("divot_lightning", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(end.code)
"""
"""`python -m divot_lightning ask RUN x.mp4` for several runs, one after the other, with one import of torch."""


def test_a_command_started_in_a_strangers_folder_imports_nothing_of_it(marker: Path, tmp_path: Path) -> None:
    runs = {"third": "divot_heads.payload.X", "run": "run.tokenizer.payload.X", "second": "payload.X"}
    for run, strange in runs.items():
        _component(tmp_path / run / "tokenizer", strange)
    (tmp_path / "run/tokenizer/payload.py").write_text(PAYLOAD.format(marker=str(marker)))
    (tmp_path / "x.mp4").touch()
    done = subprocess.run(
        [sys.executable, "-c", AS_PYTHON_M, *runs],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        input="y\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["2"] * 3, done.stderr
    for strange in runs.values():
        assert repr(strange) in done.stderr
    assert not marker.exists()


def test_our_classes_and_heads_that_packages_declare_are_allowed() -> None:
    for name in ("mse", "diffusion", "gmm", "flow"):
        require_trusted(class_path(HEADS.load(name)), "a file")
    require_trusted("divot_lightning.models.tokenizer.video_tokenizer.VideoTokenizer", "a file")
    with pytest.raises(UserError, match="is not imported"):
        require_trusted("divot_head_flow.SomethingElse", "a file")


REEXPORTED = """
from divot_heads.mse import MSEHead

class Mine(MSEHead):
    __module__ = "stranger.inner"
"""


def test_a_broken_part_does_not_hide_another_one_of_its_package(install: Callable[..., None]) -> None:
    install("stranger", "mine = stranger:Mine\nbroken = stranger:Missing", REEXPORTED)
    require_trusted("stranger.inner.Mine", "a file")
    with pytest.raises(UserError, match="is not imported"):
        require_trusted("stranger.inner.Other", "a file")


def test_a_users_own_packages_are_allowed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="DIVOT_TRUSTED_PACKAGES=mine"):
        require_trusted("mine.parts.Layer", "a file")
    monkeypatch.setenv("DIVOT_TRUSTED_PACKAGES", "other, mine")
    require_trusted("mine.parts.Layer", "a file")
    with pytest.raises(UserError, match=r"'mine_too\.Layer'"):
        require_trusted("mine_too.Layer", "a file")
