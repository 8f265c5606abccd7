"""`manifest.json` of a checkpoint folder: sizes and SHA-256 of all its files, written last.

No torch, so that looking for a run's newest checkpoint costs nothing.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.io.files import file_sha256, write_atomically

MANIFEST = "manifest.json"
FORMAT = 1
"""Raised when a change makes older checkpoints unreadable."""


@dataclass(frozen=True)
class FileRecord:
    """Size and content of a file.

    Attributes:
        bytes: Its size.
        sha256: Its SHA-256 in hexadecimal.
    """

    bytes: int
    sha256: str


def write_manifest(folder: Path, files: dict[str, FileRecord], about: dict[str, Any]) -> None:
    """Complete a folder; all of its files are on the disk before the manifest is.

    Args:
        folder: Holds the files already.
        files: All of them by name.
        about: Facts to know without opening a file, such as the step.
    """
    content = {"format": FORMAT, **about, "files": {name: asdict(record) for name, record in sorted(files.items())}}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n", durable=True)
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read a manifest.

    Returns:
        Its content, "files" as `FileRecord` by name; None where there is none that can be read.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): FileRecord(**record) for name, record in content["files"].items()}
        return {**content, "format": int(content["format"]), "files": files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_missing(folder: Path) -> list[str]:
    """Compare the sizes of a checkpoint's files with its manifest; contents are compared when it is loaded.

    Returns:
        A sentence per file that is missing or has another size; empty for a checkpoint written to its end.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST} is missing or cannot be read"]
    sized = ((name, _size(folder / name), record.bytes) for name, record in manifest["files"].items())
    return [_misfit(name, found, expected) for name, found, expected in sized if found != expected]


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint was written to its end: its manifest is there and all files have their sizes.

    Contents are compared only when a checkpoint is loaded, since that means reading all of it.
    """
    return not find_missing(folder)


def require_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint that is about to be loaded.

    Raises:
        UserError: The folder is no complete checkpoint, or one of another format.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} is no complete checkpoint: it has no readable {MANIFEST}\n"
            "give a folder checkpoints/step_... of a run"
        )
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{folder} has format {manifest['format']}, this version reads format {FORMAT}\n"
            "continue with the version of divot-lightning that wrote it"
        )
    return manifest


def find_damage(folder: Path, files: dict[str, FileRecord]) -> list[str]:
    """Compare files with their records.

    Args:
        folder: The checkpoint.
        files: Those to read, by name.

    Returns:
        A sentence per file that is missing or has another size or content.
    """
    damage = []
    for name, record in files.items():
        found = _size(folder / name)
        if found != record.bytes:
            damage.append(_misfit(name, found, record.bytes))
        elif file_sha256(folder / name) != record.sha256:
            damage.append(f"{name} has another content than was written")
    return damage


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, which `fsync` of the files alone does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _misfit(name: str, found: int | None, expected: int) -> str:
    return f"{name} is missing" if found is None else f"{name} has {found} instead of {expected} bytes"


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
