"""Samples from jsonl files whose lines name their media by path, the format of the released code's data."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from divot_datamodules.decoding.samples import read_text
from divot_datamodules.decoding.video import IMAGE_SUFFIXES
from divot_datamodules.shards.line_index import line_index
from divot_datamodules.shards.reading import MEDIA_SUFFIXES, ShardError, expand_shards, is_url
from divot_datamodules.shards.storage import LocalShard, read_whole
from divot_datamodules.shards.tar_source import MAX_TEXT_BYTES
from divot_lightning.errors import UserError, require_one_of
from divot_lightning.parts.sources import RawSample, SampleError, SkippedSample, Source

MEDIA_FIELDS = ("video", "videos", "image", "images")
"""Fields of a line that hold a path, or a list of paths in order."""

MAX_MEDIA_BYTES = 2**31
"""Longest media file that is fetched from a URL; local ones are decoded where they lie."""

MediaFrom = Literal["root", "disk", "anywhere"]
"""Where lines may take their media from; see `JsonlSource`."""

_START, _LENGTH, _CHECKSUM, _LINE = range(4)


class JsonlSource(Source):
    """Samples of jsonl files whose lines name their media by path.

    A line is an object with a path in "video" or "image", or several in order in "videos" or "images"; its other
    fields are the sample's texts. Its key is "line" with its number, counted from 1; empty lines are skipped.
    The files that paths name are only ever decoded as videos or pictures.

    Args:
        path: Local jsonl file, or a folder, glob or brace expansion of such files, or a list of these.
        media_root: Folder or URL that relative paths start from; None for the folder of each jsonl.
        media_from: Where media may be. "root": only below `media_root`. "disk": also elsewhere on a disk of this
            machine, by absolute paths and `..`. "anywhere": also behind URLs of any server, chained ones such as
            "simplecache::https://..." included. Use it only for lists that you trust: the author of the list decides
            which servers this machine contacts, those of your own network included.
        index_folder: Keeps where the lines are, so that each file is read once; see `line_index`.

    Raises:
        UserError: None of the files can be read.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        media_root: str | Path | None = None,
        media_from: MediaFrom = "disk",
        index_folder: Path | None = None,
    ) -> None:
        require_one_of(get_args(MediaFrom), media_from=media_from)
        parts = [path] if isinstance(path, str | Path) else path
        self._names = [file for part in parts for file in list_files(str(part))]
        self._root = str(media_root) if media_root is not None else None
        self._media_from, self._index_folder = media_from, index_folder
        self.skipped: list[SkippedSample] = []
        found = [self._index(name) for name in self._names]
        self._files = [file for file, _ in found]
        self._lines = [lines for _, lines in found]
        self.counts = tuple(len(lines) for lines in self._lines)
        self.fingerprint = self._fingerprint()  # it covers the lines; the media files are not hashed
        if not any(self.counts):
            first = self.skipped[0]
            raise UserError(f"{first.shard} cannot be used: {first.detail} [{first.reason}]; look at the path.")

    def _index(self, name: str) -> tuple[LocalShard | None, NDArray[np.int64]]:
        if is_url(name):
            raise UserError(f"{name} is a jsonl behind a URL; copy it to a disk (its media may stay where they are).")
        try:
            file = LocalShard(name)
            lines = line_index(file, self._index_folder)
        except (ShardError, OSError) as error:
            reason = error.reason if isinstance(error, ShardError) else "unreadable_shard"
            self.skipped.append(SkippedSample(reason, name, "", str(error)))
            return None, np.zeros((0, 4), np.int64)
        if not len(lines):
            self.skipped.append(SkippedSample("empty_shard", name, "", "no line in it"))
        return file, lines

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, lines in zip(self._names, self._lines, strict=True):
            digest.update(f"{Path(name).name}\n{len(lines)}\n".encode("utf-8", "surrogateescape"))
            digest.update(lines.ravel().data)  # its memory, not a copy
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes of the jsonl files, without the media."""
        return sum(file.size for file in self._files if file is not None)

    def shard_path(self, shard: int) -> str:
        """Return the path of a jsonl."""
        return self._names[shard]

    def key(self, shard: int, sample: int) -> str:
        """Return a line's key: its number, since ids in lines may be damaged, and are not unique in published data."""
        return f"line{self._lines[shard][sample, _LINE]}"

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one line; see `Source.read`.

        Raises:
            SampleError: "missing_shard", "unreadable_shard", "shard_changed", "bad_json", "not_utf8", "too_large",
                "missing_media", "empty_media", "undecodable", "bad_path", "media_elsewhere".
        """
        text = read_text({"json": self._line(shard, sample)})
        root = self._root if self._root is not None else os.path.dirname(self._names[shard])
        members: dict[str, bytes | Path] = dict(_media(text, root, self._media_from))
        rest = {name: value for name, value in text.items() if name not in MEDIA_FIELDS}
        members["json"] = json.dumps(rest).encode()
        return RawSample(self.key(shard, sample), self._names[shard], sample, members)

    def _line(self, shard: int, sample: int) -> bytes:
        file = self._files[shard]
        assert file is not None, f"shard {shard} has no samples"
        start, length, checksum, _ = (int(fact) for fact in self._lines[shard][sample])
        if length > MAX_TEXT_BYTES:
            raise SampleError("too_large", f"a line of {length} bytes; at most {MAX_TEXT_BYTES} are read")
        try:
            line = file.read(start, start + length)
        except ShardError as error:
            raise SampleError(error.reason, str(error)) from error
        if zlib.crc32(line) != checksum:
            raise SampleError("shard_changed", "the line is not the one that was indexed")
        return line


def list_files(part: str) -> list[str]:
    """List the jsonl files of a folder, or those that a path, glob or brace expansion names."""
    if not is_url(part) and Path(part).is_dir():
        return sorted(str(file) for file in Path(part).glob("*.jsonl"))
    return expand_shards(part)


def media_paths(text: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the field of a line that names its media, one of `MEDIA_FIELDS`, and their paths in order.

    Raises:
        SampleError: "missing_media": no field does; "bad_json": several do, or it holds something else.
    """
    given = [(name, text[name]) for name in MEDIA_FIELDS if text.get(name)]
    if not given:
        raise SampleError("missing_media", f"none of the fields {', '.join(MEDIA_FIELDS)}")
    if len(given) > 1:
        raise SampleError("bad_json", f"media in {' and '.join(name for name, _ in given)}; their order is not known")
    names = given[0][1] if isinstance(given[0][1], list) else [given[0][1]]
    if not all(isinstance(name, str) for name in names):
        raise SampleError("bad_json", f"the field {given[0][0]!r} holds no path: {str(given[0][1])[:80]}")
    return given[0][0], names


def _media(text: Mapping[str, Any], root: str, media_from: MediaFrom) -> list[tuple[str, Path | bytes]]:
    """Return the media of a line by suffix; if there are several, as numbered clips in order."""
    field, names = media_paths(text)
    is_image = field.startswith("image")
    found = [(_suffix(name, is_image=is_image), _find(name, root, media_from)) for name in names]
    return found if len(found) == 1 else [(f"clip{at}.{suffix}", media) for at, (suffix, media) in enumerate(found)]


def _suffix(name: str, *, is_image: bool) -> str:
    suffix = name.rpartition(".")[2].lower()
    if suffix not in MEDIA_SUFFIXES or (is_image and suffix not in (*IMAGE_SUFFIXES, "gif")):
        known = ", ".join(IMAGE_SUFFIXES if is_image else MEDIA_SUFFIXES)
        raise SampleError("undecodable", f"{name}: its suffix is none of {known}")
    return suffix


def _find(name: str, root: str, media_from: MediaFrom) -> Path | bytes:
    """Return a local file's absolute path, which no decoder can mistake for a protocol, or the bytes behind a URL."""
    if "\0" in name:
        raise SampleError("bad_path", f"{name!r} holds a zero byte, which no file name has")
    where = name if is_url(name) or os.path.isabs(name) else os.path.join(root, name)
    if not _is_allowed(where, root, media_from):
        raise SampleError("media_elsewhere", f"{where}: media_from {media_from!r} does not allow it")
    if is_url(where):
        data = read_whole(where, MAX_MEDIA_BYTES)
        if data is None:
            raise SampleError("missing_media", f"{where} cannot be read")
        return data
    path = Path(os.path.realpath(where) if media_from == "root" else os.path.abspath(where))
    try:
        size = LocalShard(str(path)).size
    except ShardError as error:
        raise SampleError("missing_media", f"{path}: {error}") from error
    if not size:
        raise SampleError("empty_media", str(path))
    return path


def _is_allowed(where: str, root: str, media_from: MediaFrom) -> bool:
    if media_from == "anywhere":
        return True
    if is_url(where):
        # Only below a root that is a URL: no "..", which leads out of it, and no "::", which chains another URL to it.
        inside = where[len(root) :] if is_url(root) and where.startswith(root.rstrip("/") + "/") else ""
        return bool(inside) and "::" not in inside and ".." not in inside.split("/")
    if media_from == "disk":
        return True
    real_root, real = os.path.realpath(root), os.path.realpath(where)  # a link may lead out of the root
    return os.path.commonpath([real_root, real]) == real_root
