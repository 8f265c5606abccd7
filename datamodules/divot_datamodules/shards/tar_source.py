"""Samples from tar shards, readable in any order."""

import hashlib
import io
import logging
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import fsspec
from tqdm import tqdm

from divot_datamodules.shards.content import ContentHashes
from divot_datamodules.shards.copies import ShardCopies, is_compressed
from divot_datamodules.shards.index import ShardIndex, no_samples
from divot_datamodules.shards.index_files import IndexFiles
from divot_datamodules.shards.reading import TEXT_SUFFIXES, ShardError, expand_shards, is_url, split_member_name
from divot_datamodules.shards.storage import LocalShard, RemoteShard, ShardBytes
from divot_lightning.distributed.environment import is_first_process
from divot_lightning.errors import UserError
from divot_lightning.io.files import text_sha256
from divot_lightning.parts.sources import RawSample, SampleError, SkippedSample, Source

logger = logging.getLogger(__name__)

MAX_TEXT_BYTES = 2**24
"""Largest json or txt of a sample."""

INDEXING_THREADS = 8
SLOW_SECONDS = 2.0
"""Indexing that takes longer than this shows a progress bar."""


class TarSource(Source):
    """Samples of tar shards, on a disk or behind URLs.

    The index in memory takes about 50 bytes per sample.

    Args:
        path: Folder, tar, glob, brace expansion or URL, or a list of these.
        index_folder: Folder for indexes of shards that have none beside them, and for copies of shards that cannot be
            read in parts; None stores nothing.
        allow_pipe: Whether "pipe:COMMAND" may be a shard, which runs the command in a shell.
        copies_gb: Largest size of these copies on disk, in GiB.
        progress: Whether the first process shows a bar if indexing takes long.
        may_be_empty: Whether a source without any usable sample is accepted, for reports.

    Raises:
        UserError: No shard can be read, or the copies take too much disk.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        index_folder: Path | None = None,
        allow_pipe: bool = False,
        copies_gb: float = 20.0,
        progress: bool = True,
        may_be_empty: bool = False,
    ) -> None:
        self._names = expand_shards(path, allow_pipe=allow_pipe)
        if not self._names:
            raise UserError(f"{path!r} names no shard; give a folder, a tar, a glob, a URL or a jsonl.")
        self._indexes, self._contents = IndexFiles(index_folder), ContentHashes(index_folder)
        copies = index_folder / "copies" if index_folder is not None else None
        self._copies = ShardCopies(copies, int(copies_gb * 2**30), allow_pipe=allow_pipe)
        self._shards = self._prepare_all(progress)
        self.counts = tuple(len(index.keys) for _, index in self._shards)
        self.skipped: Sequence[SkippedSample] = [
            SkippedSample(reason, name, key, detail)
            for name, (_, index) in zip(self._names, self._shards, strict=True)
            for reason, key, detail in index.skipped
        ]
        self.fingerprint = _fingerprint(self._names, [index for _, index in self._shards])
        if not may_be_empty:
            _report(self._names, self.counts, self.skipped)

    @cached_property
    def content(self) -> str:
        """Hash of parts of the shards, computed at first use; "" if one of them cannot be read."""
        readable = [(file, index) for file, index in self._shards if file is not None and len(index.keys)]
        with ThreadPoolExecutor(INDEXING_THREADS) as pool:
            hashes = list(pool.map(lambda pair: self._contents.get(*pair), readable))
        self._contents.save()
        return text_sha256("\n".join(hashes)) if all(hashes) else ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the shards that can be read."""
        return sum(index.size for _, index in self._shards)

    def shard_path(self, shard: int) -> str:
        """Return path or URL of a shard."""
        return self._names[shard]

    def key(self, shard: int, sample: int) -> str:
        """Return a sample's key."""
        return self._shards[shard][1].keys[sample]

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample; see `Source.read`."""
        file, index = self._shards[shard]
        assert file is not None, f"shard {shard} has no samples"
        start, end = (int(offset) for offset in index.ranges[sample])
        key = index.keys[sample]
        try:
            data = file.read(start, end)
        except ShardError as error:
            raise SampleError(error.reason, str(error)) from error
        return RawSample(key, self._names[shard], sample, members_of(data, key))

    def _prepare_all(self, progress: bool) -> list[tuple[ShardBytes | None, ShardIndex]]:
        hint = "`divot data index SHARDS` keeps an index beside the shards"
        with (
            ThreadPoolExecutor(INDEXING_THREADS) as pool,
            tqdm(
                pool.map(self._prepare, self._names),
                total=len(self._names),
                desc=f"indexing shards ({hint})",
                unit="shard",
                delay=SLOW_SECONDS,
                leave=False,
                disable=not (progress and is_first_process()),
            ) as bar,
        ):
            shards = list(bar)
        if self._indexes.made:
            logger.info("indexed %d of %d shards; %s", self._indexes.made, len(self._names), hint)
        return shards

    def _prepare(self, name: str) -> tuple[ShardBytes | None, ShardIndex]:
        """Open a shard and get its index; for a shard that cannot be read, the index contains only the reason."""
        try:
            shard, problem = self._open(name)
            index = self._indexes.get(shard)
        except ShardError as error:
            return None, no_samples(error.reason, str(error))
        if problem:
            index.broken_off(problem)
        return shard, index

    def _open(self, name: str) -> tuple[ShardBytes, str]:
        scheme = name.split("://")[0].split("::")[-1]
        if name.startswith("pipe:") or (is_url(name) and scheme not in fsspec.available_protocols()):
            return self._copies.get(name)
        shard = RemoteShard(name) if is_url(name) else LocalShard(name)
        if (isinstance(shard, RemoteShard) and not shard.ranges) or is_compressed(shard):
            return self._copies.get(name, f"{shard.size} {shard.stamp}")
        return shard, ""


def members_of(data: bytes, key: str) -> dict[str, bytes | Path]:
    """Split the bytes of one sample in a tar into its members.

    Args:
        data: Headers and contents of the sample's members.
        key: Key of the sample.

    Returns:
        Contents by suffix. Members that belong to no sample, such as pickles, are not read.

    Raises:
        SampleError: "shard_changed" if the bytes are not this sample; "too_large" if its text is too large.
    """
    members: dict[str, bytes | Path] = {}
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)  # a shard may be cut in the padding after its last member
    try:
        with tarfile.open(fileobj=io.BytesIO(data + padding if padding else data), mode="r:") as tar:
            for member in tar:
                named = split_member_name(member.name) if member.isreg() else None
                if named is None:
                    continue
                if named[0] != key or member.offset_data + member.size > len(data):
                    raise SampleError("shard_changed", f"there is {member.name!r} where {key!r} was")
                if named[1] in TEXT_SUFFIXES and member.size > MAX_TEXT_BYTES:
                    raise SampleError("too_large", f"{member.name}: {member.size} bytes of at most {MAX_TEXT_BYTES}")
                file = tar.extractfile(member)
                assert file is not None
                members[named[1]] = file.read()
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise SampleError("shard_changed", f"no tar member where {key!r} was ({error})") from error
    if not members:
        raise SampleError("shard_changed", f"no member where {key!r} was")
    return members


def _fingerprint(names: list[str], indexes: list[ShardIndex]) -> str:
    digest = hashlib.sha256()
    for name, index in zip(names, indexes, strict=True):
        digest.update(
            f"{name.rpartition('/')[2]}\n{index.size}\n{len(index.keys)}\n".encode("utf-8", "surrogateescape")
        )
        for array in (index.ranges, index.keys.ends, index.keys.text):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _report(names: list[str], counts: tuple[int, ...], skipped: Sequence[SkippedSample]) -> None:
    """Warn of shards without a usable sample; raise a UserError if no shard has any."""
    empty = {name for name, count in zip(names, counts, strict=True) if not count}
    unusable = [sample for sample in skipped if sample.shard in empty]
    if len(empty) == len(names):
        first = unusable[0]
        verb = "is no tar" if first.reason == "not_a_tar" else f"cannot be used: {first.detail} [{first.reason}]"
        others = f" Nor can the other {len(names) - 1} shards." if len(names) > 1 else ""
        raise UserError(f"the shard {first.shard} {verb}; look at the path.{others}")
    for sample in unusable:
        logger.warning("no sample of %s can be read: %s (%s)", sample.shard, sample.reason, sample.detail)
