"""Indexes of shards in files: beside the shards, where whoever writes shards puts them, or in the folder of a run."""

import hashlib
import io
import tarfile
import uuid
from pathlib import Path

from divot_datamodules.shard_index import STRUCTURE_REASONS, ShardIndex, index_from_bytes, scan_tar
from divot_datamodules.shard_reading import ShardError, expected_samples, is_url, split_member_name
from divot_datamodules.shard_storage import LocalShard, ShardBytes, read_whole

SUFFIX = ".index.npz"
MAX_INDEX_BYTES = 2**31
LONGEST_NAME = 2**14


def index_path(shard: str) -> str:
    """Returns path or URL of the index beside a shard.

    >>> index_path("s3://bucket/shard-000000.tar")
    's3://bucket/shard-000000.tar.index.npz'
    """
    return shard + SUFFIX


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that others see all of it or none, whoever writes it at the same time."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def write_index(shard: str | Path) -> ShardIndex:
    """Indexes a local shard and puts the index beside it.

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


def fits(index: ShardIndex, shard: ShardBytes) -> bool:
    """Tells whether an index was made of a shard as it is now.

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
        """Returns the shard's index: the kept one, the one beside the shard, or a new one.

        Raises:
            ShardError: The shard cannot be read.
        """
        kept = self._load(str(self._kept_path(shard))) if self.folder else None
        if kept is not None and fits(kept, shard):
            return kept
        # A copy has another name than its file, and what lies beside the original is of the original.
        is_copy = isinstance(shard, LocalShard) and shard.path != shard.name
        beside = None if is_copy else self._load(index_path(shard.name))
        if beside is not None and fits(beside, shard):
            if is_url(shard.name):
                beside.stamp = shard.stamp
                self._keep(beside, shard)
            return beside
        index = scan_tar(shard)
        self.made += 1
        _name_what_is_lost(index, shard, beside)
        if all(reason in STRUCTURE_REASONS for reason, _, _ in index.defects):  # others may be gone the next time
            self._keep(index, shard)
        return index

    def _keep(self, index: ShardIndex, shard: ShardBytes) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._kept_path(shard), index.to_bytes())

    def _kept_path(self, shard: ShardBytes) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(shard.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self.folder / f"{digest}{SUFFIX}"

    def _load(self, name: str) -> ShardIndex | None:
        data = read_whole(name, MAX_INDEX_BYTES)
        return index_from_bytes(data) if data is not None else None


def _name_what_is_lost(index: ShardIndex, shard: ShardBytes, before: ShardIndex | None) -> None:
    """Of a shard that breaks off, adds what an index of the whole one, or the folder's, knows of the rest."""
    broken = next((defect for defect in index.defects if defect[0].startswith(("cut_", "broken_"))), None)
    if broken is None:
        return
    reason, _, detail = broken
    found = {index.keys[place] for place in range(len(index.keys))} | {key for _, key, _ in index.defects}
    promised = [before.keys[place] for place in range(len(before.keys))] if before is not None else []
    lost = [key for key in promised if key not in found]
    if lost:
        index.defects = [defect for defect in index.defects if defect != (reason, "", detail)]
        index.defects += [(reason, key, detail) for key in lost]
        return
    expected = None if is_url(shard.name) else expected_samples(shard.name)
    if expected is not None:
        note = f"{detail}; {len(index.keys)} of {expected} samples can be read"
        index.defects[index.defects.index(broken)] = (*broken[:2], note)
