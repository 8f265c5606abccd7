"""Samples in Parquet files: a row is a sample, a row group is a shard."""

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divot_lightning.errors import UserError
from divot_lightning.parts.sources import RawSample, SampleError, SkippedSample, Source

ROW_GROUPS = 8
"""Row groups that a process keeps: the order returns to the same ones for a while."""


@dataclass(frozen=True)
class RowGroup:
    """One shard.

    Attributes:
        file: Path of the file.
        size: Bytes of the file when it was opened.
        number: Index of the row group in the file; None for a file that cannot be read.
        rows: Number of rows.
    """

    file: str
    size: int
    number: int | None
    rows: int


class ParquetSource(Source):
    """Videos or pictures with texts from Parquet files; a row group is a shard.

    A column has the media, as bytes or as {"bytes": ..., "path": ...}. The others are the sample's texts.

    Args:
        path: File, folder or glob, or a list of these.
        media: Name of the column with the media.
        suffix: What the media are, such as "mp4", "webm" or "jpg".
        key: Name of a column with keys; None for the row's number in its row group.
        index_folder: Unused: the files have an index of their own.

    Raises:
        UserError: No file has a row, or a column is missing.
    """

    def __init__(
        self,
        path: str | list[str],
        media: str = "video",
        suffix: str = "mp4",
        key: str | None = None,
        *,
        index_folder: Path | None = None,
    ) -> None:
        self.media, self.suffix, self.key_column = media, suffix, key
        skipped: list[SkippedSample] = []
        digest = hashlib.sha256()
        self._groups = [group for file in list_files(path) for group in self._open(file, skipped, digest)]
        self.skipped: Sequence[SkippedSample] = skipped
        self.counts = tuple(group.rows for group in self._groups)
        self.fingerprint = digest.hexdigest()
        if not any(self.counts):
            reason = f": {skipped[0].shard} cannot be read ({skipped[0].detail})" if skipped else ""
            raise UserError(f"the Parquet files {path!r} have no rows{reason}; look at the path in the recipe.")

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum({group.file: group.size for group in self._groups}.values())

    def _open(self, file: str, skipped: list[SkippedSample], digest: Any) -> list[RowGroup]:
        """List the row groups of a file, and add its name and footer to the digest."""
        try:
            size, metadata = os.path.getsize(file), pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            skipped.append(SkippedSample("unreadable_shard", file, "", str(error)[:200]))
            return [RowGroup(file, 0, None, 0)]
        needed = {self.media} | ({self.key_column} if self.key_column else set())
        missing = needed - set(metadata.schema.to_arrow_schema().names)
        if missing:
            columns = ", ".join(metadata.schema.to_arrow_schema().names)
            raise UserError(f"{file} has no column {', '.join(sorted(missing))}; it has {columns}")
        digest.update(f"{Path(file).name} {size} {self.media} {self.suffix} {self.key_column}\n".encode())
        digest.update(_footer(file, size, metadata.serialized_size))
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return [RowGroup(file, size, number, count) for number, count in enumerate(rows)]

    def shard_path(self, shard: int) -> str:
        """Return the file and the number of the row group."""
        group = self._groups[shard]
        return group.file if group.number is None else f"{group.file}#{group.number}"

    def key(self, shard: int, sample: int) -> str:
        """Return the row's key."""
        group = self._groups[shard]
        if self.key_column is None:
            return str(sample)
        try:
            return str(_read_group(group, (self.key_column,))[self.key_column][sample])
        except (pa.ArrowException, OSError, IndexError):  # a changed file; `read` says so
            return str(sample)

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one row; see `Source.read`."""
        group = self._groups[shard]
        try:
            if os.path.getsize(group.file) != group.size:
                raise SampleError("shard_changed", f"{group.file} has not {group.size} bytes any more")
            row: dict[str, Any] = _read_group(group).slice(sample, 1).to_pylist()[0]
        except (pa.ArrowException, OSError) as error:
            raise SampleError("unreadable_shard", str(error)[:200]) from error
        media = row.pop(self.media)
        media = media.get("bytes") if isinstance(media, dict) else media
        if not isinstance(media, bytes) or not media:
            raise SampleError("missing_media", f"the column {self.media} has no bytes")
        texts = json.dumps(row, default=str).encode()
        return RawSample(self.key(shard, sample), self.shard_path(shard), sample, {self.suffix: media, "json": texts})


def list_files(path: str | list[str]) -> list[str]:
    """List the files that a recipe names; those of a folder or glob are sorted."""
    if not isinstance(path, str):
        return [file for part in path for file in list_files(part)]
    return sorted(glob.glob(os.path.join(path, "*.parquet") if os.path.isdir(path) else path)) or [path]


def _footer(file: str, size: int, length: int) -> bytes:
    """Return the end of a file, which has sizes, positions and ranges of values of all columns."""
    with Path(file).open("rb") as stream:
        stream.seek(max(0, size - length - 8))
        return stream.read()


@lru_cache(maxsize=ROW_GROUPS)
def _read_group(group: RowGroup, columns: tuple[str, ...] | None = None) -> pa.Table:
    """Read a row group. One thread: threads do not survive a fork."""
    with pq.ParquetFile(group.file) as file:
        assert group.number is not None
        return file.read_row_group(group.number, columns and list(columns), use_threads=False)
