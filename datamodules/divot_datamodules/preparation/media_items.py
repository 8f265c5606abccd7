"""What there is to pack: the media files of a folder or of a jsonl, with their texts and keys."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.samples import read_text
from divot_datamodules.shards.jsonl_source import MEDIA_FIELDS, media_paths
from divot_datamodules.shards.reading import MEDIA_SUFFIXES
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError


@dataclass(frozen=True)
class MediaItem:
    """A media file, or the media files of a story, to pack.

    Attributes:
        key: Unique key; without dots, since for many readers the suffix begins at the first dot.
        paths: The media file, or the files of a story in order.
        text: Content of the sample's json; {} for none.
        problem: Error that its text has, if any.
    """

    key: str
    paths: tuple[Path, ...]
    text: dict[str, Any] = field(default_factory=dict)
    problem: SampleError | None = None


def safe_key(name: str) -> str:
    """Return a name without dots and spaces, for use as a key.

    >>> safe_key("cats/my clip.v1.2")
    'cats/my_clip_v1_2'
    """
    return re.sub(r"[^\w/-]+", "_", name).strip("_/") or "sample"


def _unique(key: str, taken: set[str]) -> str:
    candidate, number = key, 1
    while candidate in taken:
        candidate, number = f"{key}_{number}", number + 1
    taken.add(candidate)
    return candidate


def find_media(source: Path) -> list[MediaItem]:
    """List the items of a folder (media files, each with a .json or .txt of the same name) or of a jsonl.

    Raises:
        UserError: It names nothing to pack, or is neither a folder nor a jsonl.
    """
    if source.is_dir():
        found = list(_folder_items(source))
    elif source.is_file() and source.suffix == ".jsonl":
        found = list(_jsonl_items(source))
    else:
        raise UserError(f"{source} is neither a folder nor a .jsonl file; give one of these.")
    if not found:
        raise UserError(f"{source} names nothing to pack; known suffixes: {', '.join(MEDIA_SUFFIXES)}.")
    return found


def _folder_items(folder: Path) -> Iterator[MediaItem]:
    taken: set[str] = set()
    for path in sorted(folder.rglob("*")):
        if suffix_of(path) not in MEDIA_SUFFIXES or not path.is_file():
            continue
        key = _unique(safe_key(path.relative_to(folder).with_suffix("").as_posix()), taken)
        texts = {suffix: path.with_suffix(f".{suffix}") for suffix in ("json", "txt")}
        members = {suffix: text.read_bytes() for suffix, text in texts.items() if text.is_file()}
        try:
            yield MediaItem(key, (path,), read_text(members))
        except SampleError as error:
            yield MediaItem(key, (path,), problem=error)


def _jsonl_items(file: Path) -> Iterator[MediaItem]:
    taken: set[str] = set()
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = read_text({"json": line})
            _, names = media_paths(text)
        except SampleError as error:
            yield MediaItem(f"line{number}", (file,), problem=error)
            continue
        key = _unique(safe_key(Path(names[0]).with_suffix("").as_posix()), taken)
        rest = {name: value for name, value in text.items() if name not in MEDIA_FIELDS}
        yield MediaItem(key, tuple(file.parent / name for name in names), rest)
