"""Indexes of shards in files: beside the shards, where whoever writes shards puts them, or in the folder of a run."""

import hashlib
import io
import tarfile
import uuid
from pathlib import Path

import fsspec

from divot_datamodules.shards.index import STRUCTURE_REASONS, ShardIndex, index_from_bytes, no_samples, scan_tar
from divot_datamodules.shards.reading import ShardError, first_line, is_url, split_member_name
from divot_datamodules.shards.storage import LocalShard, RemoteShard, ShardBytes, read_whole
from divot_lightning.errors import UserError
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that others see all of it or none, whoever writes it at the same time."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_index(shard: str | Path) -> ShardIndex:
    """Index a local shard and puts the index beside it.

    Equal shards have equal indexes: the time of change is left out, since both files may be copied elsewhere.

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
    """Make sure that the index beside a shard, local or behind a URL, is there and is the shard's.

    Args:
        shard: Path or URL of an uncompressed tar.

    Returns:
        The index, and whether it was made. Of a shard that cannot be read, or not by parts, none is made: it has no
        samples and a defect.

    Raises:
        UserError: It cannot be put there.
    """
    try:
        file = RemoteShard(shard) if is_url(shard) else LocalShard(shard)
        if isinstance(file, RemoteShard) and not file.ranges:
            raise ShardError("it can only be read as a whole, so that an index beside it is of no use", "no_parts")
        beside = load_index(index_path(shard))
        if beside is not None and fits(beside, file):
            return beside, False
        index = scan_tar(file)
    except ShardError as error:
        return no_samples(error.reason, str(error)), False
    index.stamp = ""
    _name_what_is_lost(index, beside)
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
    """Return whether an index was made of a shard as it is now.

    The size must be equal, and either the stamp or, since copying a shard gives it another one, the key that the
    shard has at the last indexed place. Whoever reads a sample compares its key as well.
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
    """Finds the index of a shard, or makes it.

    Args:
        folder: Keeps the indexes that were made, so that a later run does not make them again; None keeps none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.made = 0

    def get(self, shard: ShardBytes) -> ShardIndex:
        """Return the shard's index: the kept one, the one beside the shard, or a new one.

        Raises:
            ShardError: The shard cannot be read.
        """
        kept = load_index(str(self._kept_path(shard))) if self.folder else None
        if kept is not None and fits(kept, shard):
            return kept
        # A copy has another name than its file, and what lies beside the original is of the original.
        is_copy = isinstance(shard, LocalShard) and shard.path != shard.name
        beside = None if is_copy else load_index(index_path(shard.name))
        if beside is not None and fits(beside, shard):
            if is_url(shard.name):
                beside.stamp = shard.stamp
                self._keep(beside, shard)
            return beside
        index = scan_tar(shard)
        self.made += 1
        _name_what_is_lost(index, beside)
        if all(reason in STRUCTURE_REASONS for reason, _, _ in index.skipped):  # others may be gone the next time
            self._keep(index, shard)
        return index

    def _keep(self, index: ShardIndex, shard: ShardBytes) -> None:
        if self.folder is not None:
            with writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self._kept_path(shard), index.to_bytes())

    def _kept_path(self, shard: ShardBytes) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(shard.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self.folder / f"{digest}{SUFFIX}"


def _name_what_is_lost(index: ShardIndex, before: ShardIndex | None) -> None:
    """Of a shard that breaks off, adds what an index of the whole one knows of the rest."""
    broken = next((defect for defect in index.skipped if defect[0].startswith(("cut_", "broken_"))), None)
    if broken is None:
        return
    reason, _, detail = broken
    found = {index.keys[place] for place in range(len(index.keys))} | {key for _, key, _ in index.skipped}
    promised = [before.keys[place] for place in range(len(before.keys))] if before is not None else []
    lost = [key for key in promised if key not in found]
    if lost:
        index.skipped = [defect for defect in index.skipped if defect != (reason, "", detail)]
        index.skipped += [(reason, key, detail) for key in lost]
