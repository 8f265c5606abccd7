"""Describe what decides a score besides the model: content hashes and versions of libraries. No torch in here."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from divot_lightning.evaluation.scores import Score
from divot_lightning.io.files import file_sha256

VERSIONED = ("divot-lightning", "torch", "transformers", "torchmetrics", "diffusers", "av", "numpy", "pillow")
ABSENT = "(not stated)"
COUNTED = "counted"
"""Entry of the protocol of a score that counts a part of the items only, by a rule of its own."""


def folder_sha256(folder: str | Path, pattern: str = "*") -> str:
    """Return one SHA-256 over the names and contents of a folder's files that match a pattern, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob(pattern)):
        if path.is_file():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def listing_sha256(files: Iterable[tuple[str, int]]) -> str:
    """Return one SHA-256 over names and sizes, for media that are too large to be hashed themselves."""
    digest = hashlib.sha256()
    for name, size in sorted(files):
        digest.update(f"{name} {size}\n".encode())
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a measurement uses."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}


def differing(values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Find where several JSON objects differ.

    Args:
        values: Objects of JSON.

    Returns:
        By dotted name the value of each object, `(not stated)` if it has none.

    >>> differing([{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}])
    {'b.c': [2, 3], 'd': ['(not stated)', 4]}
    """
    flat = [_flat(value) for value in values]
    names = dict.fromkeys(name for part in flat for name in part)
    found = {name: [part.get(name, ABSENT) for part in flat] for name in names}
    return {name: each for name, each in found.items() if any(value != each[0] for value in each)}


def differing_protocols(scores: Sequence[Score]) -> dict[str, list[Any]]:
    """Find where the protocols or the counts of scores differ, see `differing`.

    The number of items is compared too, except for scores that count only the items on which they are defined, such as
    clips that an oracle can read: there it depends on the model.
    """
    counts = [{} if COUNTED in score.protocol else {"count": score.count} for score in scores]
    return differing([{**count, **score.protocol} for count, score in zip(counts, scores, strict=True)])


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value} if name else {}
    parts = (_flat(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}
