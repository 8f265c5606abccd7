"""Helpers that read the files of a benchmark."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.video import VIDEO_SUFFIXES
from divot_lightning.errors import UserError
from divot_lightning.parts.benchmarks import BenchmarkData, BenchmarkItem


class BenchmarkFolder:
    """The folder of a benchmark; it records which files were read.

    Args:
        folder: The unpacked benchmark.
        benchmark: Name for messages.

    Raises:
        UserError: There is no such folder.
    """

    def __init__(self, folder: str | Path, benchmark: str) -> None:
        self.folder, self.benchmark = Path(folder), benchmark
        self.files: dict[str, Path] = {}
        if not self.folder.is_dir():
            raise UserError(f"{benchmark}: there is no folder {folder}; give the folder of the benchmark")

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return (self.folder / name).is_file()

    def read_json(self, *names: str) -> Any:
        """Read the first of the files that exists.

        Raises:
            UserError: None exists, or it is no JSON.
        """
        name = next((name for name in names if self.has(name)), None)
        if name is None:
            raise UserError(f"{self.benchmark}: {self.folder} has no {' nor '.join(names)}")
        self.files[name] = self.folder / name
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.benchmark}: {self.folder / name} is no JSON: {error}") from error

    def read_lines(self, name: str) -> list[str]:
        """Read a text file's lines; return none if there is no such file.

        Raises:
            UserError: The file is not UTF-8.
        """
        if not self.has(name):
            return []
        self.files[name] = self.folder / name
        try:
            return (self.folder / name).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.benchmark}: {self.folder / name} is no UTF-8: {error}") from error

    def videos(self, *folders: str) -> "MediaFolders":
        """List the videos of all folders that exist; earlier folders take precedence.

        Raises:
            UserError: None of them exists.
        """
        there = [name for name in folders if (self.folder / name).is_dir()]
        if not there:
            raise UserError(f"{self.benchmark}: {self.folder} has no folder {' nor '.join(folders)} with the videos")
        return MediaFolders(self.folder, there)

    def data(self, items: Iterable[BenchmarkItem]) -> BenchmarkData:
        """Return the items with the files that were read.

        Raises:
            UserError: There is no item, or two have the same id.
        """
        found = tuple(items)
        if not found:
            raise UserError(f"{self.benchmark}: {self.folder} has no item in {', '.join(self.files)}")
        seen: set[str] = set()
        for item in found:
            if item.id in seen:
                raise UserError(f"{self.benchmark}: the item {item.id!r} occurs twice in {', '.join(self.files)}")
            seen.add(item.id)
        return BenchmarkData(found, dict(self.files))


class MediaFolders:
    """The videos of some folders, by name without suffix; a video in several folders is taken from the first.

    Args:
        root: The benchmark's folder.
        names: Of the folders within it, at least one.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.by_stem: dict[str, tuple[Path, str]] = {}
        for name in names:
            for path in sorted((root / name).iterdir()):
                if suffix_of(path) in VIDEO_SUFFIXES:
                    self.by_stem.setdefault(path.stem, (path, f"{name}/{path.name}"))

    def find(self, *stems: str) -> tuple[Path | None, str]:
        """Return the path of the first of the names that exists, or None, and its name for messages."""
        for stem in stems:
            if stem in self.by_stem:
                return self.by_stem[stem]
        return None, f"{self.names[0]}/{stems[0]}"


def field_of(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return a field of a JSON object.

    Args:
        entry: The object.
        name: Of the field.
        kind: Its type.
        where: File and entry, for the message.

    Raises:
        UserError: The field is missing or has another type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(each.__name__ for each in kinds)
    if not isinstance(entry, dict) or name not in entry:
        there = f"it has {', '.join(map(str, entry))}" if isinstance(entry, dict) else f"it is a {type(entry).__name__}"
        raise UserError(f"{where} has no field {name!r}; {there}"[:400])
    if not isinstance(entry[name], kinds) or isinstance(entry[name], bool):
        raise UserError(f"{where}: {name!r} is {str(entry[name])[:80]!r}; it must be a {names}")
    return entry[name]
