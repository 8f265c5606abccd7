"""What decides a score besides the model: content hashes of files and folders, versions of libraries. No torch."""

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSIONED = ("divot-lightning", "torch", "transformers", "torchmetrics", "diffusers", "av", "numpy", "pillow")


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: str | Path, pattern: str = "*") -> str:
    """Returns one SHA-256 over the names and contents of a folder's files that match a pattern, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob(pattern)):
        if path.is_file():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def listing_sha256(files: Iterable[tuple[str, int]]) -> str:
    """Returns one SHA-256 over names and sizes, for media that are too large to be read for it."""
    digest = hashlib.sha256()
    for name, size in sorted(files):
        digest.update(f"{name} {size}\n".encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Returns the versions of what takes part in a measurement."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
