"""Files with the indexes of shards: beside the shards, where writers of shards put them, or in a run folder."""

import io
import tarfile
from pathlib import Path

import fsspec

from divot_datamodules.shards.index import ShardIndex, index_from_bytes, no_samples
from divot_datamodules.shards.reading import ShardError, is_url, split_member_name
from divot_datamodules.shards.storage import LocalShard, RemoteShard, ShardBytes, read_whole
from divot_datamodules.shards.tar_scan import STRUCTURE_REASONS, scan_tar
from divot_lightning.errors import UserError, first_line
from divot_lightning.io.files import text_sha256, write_atomically
from divot_lightning.io.output_files import writing_to

SUFFIX = ".index.npz"
MAX_INDEX_BYTES = 2**31
LONGEST_NAME = 2**14


def index_path(shard: str) -> str:
    """Return path or URL of the index beside a shard.

    >>> index_path("s3://bucket/shard-000000.tar")
    's3://bucket/shard-000000.tar.index.npz'
    """
    return shard + SUFFIX


def write_index(shard: str | Path) -> ShardIndex:
    """Index a local shard and write the index beside it.

    Equal shards have equal indexes: the time of change is not stored, since both files may be copied elsewhere.

    Args:
        shard: An uncompressed tar.

    Raises:
        ShardError: It cannot be read.
    """
    index = scan_tar(LocalShard(str(shard)))
    index.stamp = ""
    write_atomically(Path(index_path(str(shard))), index.to_bytes())
    return index


def put_index_beside(shard: str) -> tuple[ShardIndex, bool]:
    """Make sure that a shard, local or behind a URL, has an index beside it that fits.

    Args:
        shard: Path or URL of an uncompressed tar.

    Returns:
        The index, and whether it was written. For a shard that cannot be read, or not in parts, no index is written:
        the result has no samples and contains the reason.

    Raises:
        UserError: The index cannot be written.
    """
    try:
        file = RemoteShard(shard) if is_url(shard) else LocalShard(shard)
        if isinstance(file, RemoteShard) and not file.ranges:
            raise ShardError("it can only be read as a whole, so an index beside it is of no use", "no_parts")
        beside = load_index(index_path(shard))
        if beside is not None and fits(beside, file):
            return beside, False
        index = scan_tar(file)
    except ShardError as error:
        return no_samples(error.reason, str(error)), False
    index.stamp = ""
    _add_missing_samples(index, beside)
    if any(reason in ("not_a_tar", "broken_off") for reason, _, _ in index.skipped):
        return index, False
    try:
        _write(index_path(shard), index.to_bytes())
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(
            f"{index_path(shard)} cannot be written ({first_line(error)}).\nIndex where the shards can be written, or "
            "leave it: the first training run makes the indexes and keeps them in its folder."
        ) from error
    return index, True


def _write(name: str, data: bytes) -> None:
    if not is_url(name):
        write_atomically(Path(name), data)
        return
    system, path = fsspec.core.url_to_fs(name)
    system.pipe_file(path, data)  # object stores show all of it or none


def load_index(name: str) -> ShardIndex | None:
    """Read an index from a path or URL; None if it is not there or damaged."""
    data = read_whole(name, MAX_INDEX_BYTES)
    return index_from_bytes(data) if data is not None else None


def fits(index: ShardIndex, shard: ShardBytes) -> bool:
    """Return whether an index was made from a shard as it is now.

    The size must be equal. Either the stamp must be equal as well or, since a copy has another stamp, the key of the
    last sample. When a sample is read, its key is compared again.
    """
    if index.size != shard.size:
        return False
    if shard.stamp and index.stamp == shard.stamp:
        return True
    last = len(index.keys) - 1
    return last >= 0 and _key_at(shard, *index.ranges[last]) == index.keys[last]


def _key_at(shard: ShardBytes, start: int, end: int) -> str | None:
    try:
        data = shard.read(int(start), int(min(end, start + LONGEST_NAME)))
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            member = tar.next()
    except (ShardError, tarfile.TarError, ValueError, OverflowError):
        return None
    named = split_member_name(member.name) if member is not None else None
    return named[0] if named else None


class IndexFiles:
    """Finds or makes the indexes of shards.

    Args:
        folder: Stores new indexes, so that later runs need not make them again; None stores none.

    Attributes:
        made: Number of indexes that were made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.made = 0

    def get(self, shard: ShardBytes) -> ShardIndex:
        """Return the index of a shard: the stored one, the one beside the shard, or a new one.

        Raises:
            ShardError: The shard cannot be read.
        """
        kept = load_index(str(self._kept_path(shard))) if self.folder else None
        if kept is not None and fits(kept, shard):
            return kept
        # For a local copy of a shard, the index beside the original does not fit: it may be of the compressed file.
        is_copy = isinstance(shard, LocalShard) and shard.path != shard.name
        beside = None if is_copy else load_index(index_path(shard.name))
        if beside is not None and fits(beside, shard):
            if is_url(shard.name):
                beside.stamp = shard.stamp
                self._keep(beside, shard)
            return beside
        index = scan_tar(shard)
        self.made += 1
        _add_missing_samples(index, beside)
        if all(reason in STRUCTURE_REASONS for reason, _, _ in index.skipped):  # other reasons may be temporary
            self._keep(index, shard)
        return index

    def _keep(self, index: ShardIndex, shard: ShardBytes) -> None:
        if self.folder is not None:
            with writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self._kept_path(shard), index.to_bytes())

    def _kept_path(self, shard: ShardBytes) -> Path:
        assert self.folder is not None
        digest = text_sha256(shard.name)[:16]
        return self.folder / f"{digest}{SUFFIX}"


def _add_missing_samples(index: ShardIndex, before: ShardIndex | None) -> None:
    """If a shard breaks off, add the samples that an index of the whole shard contains and that are missing now."""
    broken = next((sample for sample in index.skipped if sample[0].startswith(("cut_", "broken_"))), None)
    if broken is None:
        return
    reason, _, detail = broken
    found = {index.keys[number] for number in range(len(index.keys))} | {key for _, key, _ in index.skipped}
    expected = [before.keys[number] for number in range(len(before.keys))] if before is not None else []
    missing = [key for key in expected if key not in found]
    if missing:
        index.skipped = [sample for sample in index.skipped if sample != (reason, "", detail)]
        index.skipped += [(reason, key, detail) for key in missing]
