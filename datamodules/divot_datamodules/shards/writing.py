"""Writing of samples into tar shards, with an index beside each. A file with a shard's name is always complete."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset

from divot_datamodules.shards.index_files import index_path, write_index
from divot_datamodules.shards.reading import UNFINISHED_INDEX
from divot_lightning.errors import UserError
from divot_lightning.io.file_locks import writer_lock
from divot_lightning.io.files import atomic_file, write_atomically
from divot_lightning.io.output_files import make_folder, writing_to

Sample = tuple[str, Mapping[str, bytes]]
"""A key and the sample's members by suffix, such as ("00017", {"mp4": ..., "json": ...})."""

INDEX_NAME = "index.json"
_LOCK_NAME = "index.lock"
FORMAT = 1


@dataclass(frozen=True)
class ShardEntry:
    """One shard in the index: file name, number of samples, size of the file in bytes."""

    name: str
    samples: int
    bytes: int


def shard_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_name(7)
    'shard-000007.tar'
    """
    return f"shard-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardEntry:
    """Write samples into one tar, atomically; equal samples give equal bytes.

    An index is written beside it, so that readers need not scan the shard; see `divot_datamodules.shards.index`.

    Args:
        path: Path of the tar; its folder exists.
        samples: The samples, in order.
    """
    count = 0
    # An open file, not a name: TarWriter runs names such as "pipe:..." as commands. PAX allows long names.
    options = {"encoder": False, "mtime": 0, "format": "PAX_FORMAT"}
    with (
        atomic_file(path) as unfinished,
        unfinished.open("wb") as stream,
        webdataset.TarWriter(stream, **options) as tar,
    ):
        for key, members in samples:
            tar.write({"__key__": key, **members})
            count += 1
    write_index(path)
    return ShardEntry(path.name, count, path.stat().st_size)


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index of a finished shard folder, or None if there is none.

    Raises:
        UserError: The index is no valid JSON.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); delete the folder and make the shards again.") from error
    return index


class ShardFolder:
    """A folder of shards of one kind, made with one set of settings.

    A folder that is finished with the same settings is not changed. An interrupted one is continued. Any other folder
    that contains shards is refused, and so is one into which another process writes.

    Args:
        folder: Folder of the shards.
        kind: "video" or "features".
        settings: All settings that decide the content of the shards, as JSON types.
        newer_settings: More of these, which folders of earlier versions lack; compared only if a folder has them.

    Attributes:
        complete: Whether the folder already contains all shards.

    Raises:
        UserError: The folder is refused, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        kind: str,
        settings: Mapping[str, Any],
        newer_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self._newer = Path(folder), set(newer_settings or {})
        every = {**settings, **(newer_settings or {})}
        self._index: dict[str, Any] = {"format": FORMAT, "kind": kind, "settings": every, "shards": []}
        self._index = json.loads(json.dumps(self._index))  # lists for tuples and so on, as the file will have them
        self.complete = read_index(self.folder) is not None
        if not self.complete:
            with writing_to(self.folder):
                make_folder(self.folder)
                self._lock = writer_lock(self.folder / _LOCK_NAME)
                for left in self.folder.glob(".*.unfinished"):  # by a process that was killed while it wrote
                    left.unlink()
        self._compare_with_existing()

    def _compare_with_existing(self) -> None:
        unfinished = self.folder / UNFINISHED_INDEX
        existing = read_index(self.folder)
        self.complete = existing is not None
        if existing is None and unfinished.is_file():
            existing = json.loads(unfinished.read_text(encoding="utf-8"))
        if existing is None:
            if any(self.folder.glob("*.tar")):
                raise UserError(f"{self.folder} already contains tars without an {INDEX_NAME}; choose another folder.")
            return
        differing = self._difference(existing)
        if differing and not existing["shards"]:
            return  # it was stopped before its first shard, so there is nothing to continue and nothing to lose
        if differing:
            raise UserError(
                f"{self.folder} already contains shards of other settings: {differing}.\n"
                "Choose another output folder, or delete this one."
            )
        self._index = existing
        self._refuse_damaged_shards()

    def _difference(self, existing: Mapping[str, Any]) -> str:
        expected = {"kind": self._index["kind"], **self._index["settings"]}
        found = {"kind": existing.get("kind"), **existing.get("settings", {})}
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        names = [name for name in names if name in found or name not in self._newer]
        return ", ".join(f"{name} is {found.get(name)!r}, not {expected.get(name)!r}" for name in names[:3])

    def _refuse_damaged_shards(self) -> None:
        for entry in self.entries():
            path = self.folder / entry.name
            if not path.is_file() or path.stat().st_size != entry.bytes:
                raise UserError(f"{path} is missing or not as its index says; delete {self.folder} and make it again.")

    def facts(self) -> dict[str, Any]:
        """Return the current index."""
        return dict(self._index)

    def restart(self) -> None:
        """Remove the shards of an interrupted call, if the work cannot be continued and must begin again."""
        assert not self.complete, "the folder is finished"
        for entry in self.entries():
            (self.folder / entry.name).unlink()
            Path(index_path(str(self.folder / entry.name))).unlink(missing_ok=True)
        self._index["shards"] = []
        (self.folder / UNFINISHED_INDEX).unlink(missing_ok=True)

    def entries(self) -> list[ShardEntry]:
        """Return the finished shards."""
        return [ShardEntry(**entry) for entry in self._index["shards"]]

    def has(self, number: int) -> bool:
        """Return whether a shard is finished."""
        return any(entry.name == shard_name(number) for entry in self.entries())

    def write(self, number: int, samples: Iterable[Sample]) -> ShardEntry:
        """Write the shard with this number and add it to the index."""
        assert not self.complete, "the folder is finished"
        with writing_to(self.folder):
            _write_json(self.folder / UNFINISHED_INDEX, self._index)
            entry = write_shard(self.folder / shard_name(number), samples)
            self._index["shards"].append(asdict(entry))
            _write_json(self.folder / UNFINISHED_INDEX, self._index)
        return entry

    def write_all(self, samples: Iterable[Sample], samples_per_shard: int) -> None:
        """Write samples into as many shards as needed."""
        remaining = iter(samples)
        number = 0
        while first := list(islice(remaining, 1)):
            self.write(number, _chunk(first, remaining, samples_per_shard))
            number += 1

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Write the index; then the folder is complete.

        Args:
            facts: More entries for the index, as JSON types.

        Returns:
            The index.
        """
        self._index["shards"].sort(key=lambda entry: entry["name"])
        self._index["num_samples"] = sum(entry.samples for entry in self.entries())
        self._index.update(facts)
        with writing_to(self.folder):
            _write_json(self.folder / INDEX_NAME, self._index)
            (self.folder / UNFINISHED_INDEX).unlink(missing_ok=True)
        self.complete = True
        self._lock.release()
        return self._index


def _chunk(first: list[Sample], remaining: Iterator[Sample], size: int) -> Iterator[Sample]:
    yield from first
    yield from islice(remaining, size - 1)


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")
