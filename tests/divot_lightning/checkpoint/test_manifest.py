"""Checkpoint folders are complete or they are none."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from divot_lightning.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    find_damage,
    is_complete,
    require_manifest,
    write_manifest,
)
from divot_lightning.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = {}
    for name, content in (("a.bin", b"first"), ("b.bin", b"second")):
        (tmp_path / name).write_bytes(content)
        records[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    write_manifest(tmp_path, records, {"step": 7})
    return tmp_path


def test_a_folder_is_complete_with_its_manifest_and_all_sizes(folder: Path) -> None:
    assert is_complete(folder)
    assert require_manifest(folder)["step"] == 7
    assert find_damage(folder, require_manifest(folder)["files"]) == []


@pytest.mark.parametrize("name", ["a.bin", MANIFEST])
def test_a_folder_that_lacks_a_file_is_not_complete(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert not is_complete(folder)


def test_a_file_that_was_cut_off_makes_a_folder_incomplete(folder: Path) -> None:
    (folder / "b.bin").write_bytes(b"secon")
    assert not is_complete(folder)
    assert find_damage(folder, require_manifest(folder)["files"]) == ["b.bin has 5 instead of 6 bytes"]


def test_a_changed_byte_is_found_by_reading(folder: Path) -> None:
    (folder / "b.bin").write_bytes(b"secoNd")
    assert is_complete(folder)
    assert find_damage(folder, require_manifest(folder)["files"]) == ["b.bin has another content than was written"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 3}', '{"format": 1, "files": {"a.bin": {"size": 3}}}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert not is_complete(folder)
    with pytest.raises(UserError, match=r"no complete checkpoint.*manifest\.json"):
        require_manifest(folder)


def test_a_manifest_of_another_format_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text().replace('"format": 1', '"format": 9')
    (folder / MANIFEST).write_text(text)
    with pytest.raises(UserError, match="has format 9"):
        require_manifest(folder)


def test_looking_for_checkpoints_needs_no_torch() -> None:
    code = "import sys; import divot_lightning.training.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
