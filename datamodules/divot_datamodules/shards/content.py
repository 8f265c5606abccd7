"""Whether a shard holds what it held before, from a few bytes of it.

Names, sizes and keys do not tell a shard from another one that was made in the same way from other videos. So of eight
samples, spread evenly over the shard, the middle and the end are hashed, 1 KiB each, which is where media and texts lie
(all of a sample of up to 8 KiB). Other media or texts throughout are always noticed; where a share s of the samples
changed, it goes unnoticed with a probability of about (1 - s)^8: 0.4% for a half, 43% for a tenth.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from divot_datamodules.shards.index import ShardIndex
from divot_datamodules.shards.index_files import write_atomically
from divot_datamodules.shards.reading import ShardError
from divot_datamodules.shards.storage import ShardBytes
from divot_lightning.io.output_files import writing_to

SAMPLES, PIECE, WHOLE = 8, 1024, 8192
"""Samples of a shard that are looked at, bytes of each piece, bytes up to which a sample is read whole."""

FILE_NAME = "content.json"


def content_hash(shard: ShardBytes, index: ShardIndex) -> str:
    """Return the hash of a shard's pieces; "" if they cannot be read, or if the shard has no samples.

    Args:
        shard: The shard.
        index: Of the shard as it is now.
    """
    count = len(index.keys)
    chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).round().astype(int))
    digest = hashlib.sha256()
    try:
        for start, end in index.ranges[chosen].tolist():
            for piece in _pieces(start, end):
                digest.update(shard.read(*piece))
    except ShardError:
        return ""
    return digest.hexdigest() if count else ""


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    if end - start <= WHOLE:
        return [(start, end)]
    middle = (start + end - PIECE) // 2
    return [(middle, middle + PIECE), (end - PIECE, end)]


class ContentHashes:
    """Hashes of shards' content, kept in a file so that a shard that did not change is not read again.

    Args:
        folder: Where the file lies; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / FILE_NAME if folder is not None else None
        self._known: dict[str, list[str]] = {}
        self._changed = False
        if self._path is not None:
            with suppress(OSError, ValueError, TypeError):
                self._known = {str(name): [str(part) for part in fact] for name, fact in _read(self._path).items()}

    def get(self, shard: ShardBytes, index: ShardIndex) -> str:
        """Return a shard's hash; it is computed anew unless size and time of change (or ETag) are as before."""
        version = f"{shard.size} {shard.stamp}"
        known = self._known.get(shard.name, [])
        if shard.stamp and known[:1] == [version] and len(known) == 2:
            return known[1]
        found = content_hash(shard, index)
        if found:
            self._known[shard.name], self._changed = [version, found], True
        return found

    def save(self) -> None:
        """Keep what was computed."""
        if self._path is None or not self._changed:
            return
        with writing_to(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._known).encode("utf-8", "backslashreplace"))


def _read(path: Path) -> dict[str, list[str]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
