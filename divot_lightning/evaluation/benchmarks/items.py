"""The items of a benchmark, and helpers that read a benchmark's files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divot_datamodules.decoding.video import VIDEO_SUFFIXES
from divot_lightning.errors import UserError


@dataclass(frozen=True)
class BenchmarkItem:
    """One question, or one caption, about one video.

    Attributes:
        id: Identifies the item within the benchmark, the same in every run.
        media: The video's path or bytes, or the folder of its frames; None if the video is missing.
        media_name: Path of the video within the benchmark's folder.
        question: The question; empty for captions and generated clips.
        options: The options of a multiple-choice question, (A) first.
        choice: Index of the right option; None if it is not public.
        answer: The right answer of an open question; None for other items.
        references: Captions by people.
        group: The part of the benchmark that has a score of its own, such as MVBench's task; empty without parts.
        bounds: Seconds of the video's part that is shown; None shows all of it.
        frame_rate: Frames per second of a folder of numbered frames; None for a video.
        problem: Why the entry in the file is invalid, empty if it is valid. An invalid item counts as `unreadable`; its
            media is the file with the entry.
        facts: Further facts, such as the `prompt` for a generated clip.
    """

    id: str
    media: Path | bytes | None
    media_name: str
    question: str = ""
    options: tuple[str, ...] = ()
    choice: int | None = None
    answer: str | None = None
    references: tuple[str, ...] = ()
    group: str = ""
    bounds: tuple[float, float] | None = None
    frame_rate: float | None = None
    problem: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkData:
    """A split of a benchmark.

    Attributes:
        items: Its items, in the order of its files.
        files: The files that were read, by their names within the folder.
    """

    items: tuple[BenchmarkItem, ...]
    files: Mapping[str, Path]

    @property
    def missing(self) -> list[str]:
        """Names of the missing videos, each once."""
        return list(dict.fromkeys(item.media_name for item in self.items if item.media is None))


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
        """Read a text file's lines; return none if there is no such file."""
        if not self.has(name):
            return []
        self.files[name] = self.folder / name
        return (self.folder / name).read_text(encoding="utf-8").splitlines()

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
                if path.suffix.lower().lstrip(".") in VIDEO_SUFFIXES:
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
