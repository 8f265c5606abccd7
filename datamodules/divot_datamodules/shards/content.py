"""A hash of a few bytes of each shard, which shows whether a shard's content has changed.

Names, sizes and keys can be equal for two shards that were made in the same way from different videos. So this hash
takes eight samples, spread evenly over the shard. Of each it hashes the middle and the end, 1 KiB each, where media and
texts are (all of a sample of up to 8 KiB). A change of all media or texts is always noticed. If a fraction s of the
samples changed, the change is missed with a probability of about (1 - s)^8: 0.4% for a half, 43% for a tenth.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from divot_datamodules.shards.index import ShardIndex
from divot_datamodules.shards.reading import ShardError
from divot_datamodules.shards.storage import ShardBytes
from divot_lightning.io.files import write_atomically
from divot_lightning.io.output_files import writing_to

SAMPLES, PIECE, WHOLE = 8, 1024, 8192
"""Number of samples per shard that are hashed; bytes of each piece; largest sample in bytes that is hashed whole."""

FILE_NAME = "content.json"


def content_hash(shard: ShardBytes, index: ShardIndex) -> str:
    """Return the hash of a shard's pieces; "" if they cannot be read, or if the shard has no samples.

    Args:
        shard: The shard.
        index: The index of the shard as it is now.
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
    """Hashes of shards' content, stored in a file so that unchanged shards are not read again.

    Args:
        folder: Folder of the file; None stores nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / FILE_NAME if folder is not None else None
        self._known: dict[str, list[str]] = {}
        self._changed = False
        if self._path is not None:
            with suppress(OSError, ValueError, TypeError):
                self._known = {str(name): [str(part) for part in fact] for name, fact in _read(self._path).items()}

    def get(self, shard: ShardBytes, index: ShardIndex) -> str:
        """Return a shard's hash. It is computed again if size or time of change (or ETag) are not the stored ones."""
        version = f"{shard.size} {shard.stamp}"
        known = self._known.get(shard.name, [])
        if shard.stamp and known[:1] == [version] and len(known) == 2:
            return known[1]
        found = content_hash(shard, index)
        if found:
            self._known[shard.name], self._changed = [version, found], True
        return found

    def save(self) -> None:
        """Write new hashes to the file."""
        if self._path is None or not self._changed:
            return
        with writing_to(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._known).encode("utf-8", "backslashreplace"))


def _read(path: Path) -> dict[str, list[str]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
