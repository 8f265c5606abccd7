"""Local copies of shards that cannot be read in parts: commands, servers without ranges, compressed tars."""

import bz2
import gzip
import logging
import lzma
import os
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import fsspec

from divot_datamodules.shards import storage as shard_storage
from divot_datamodules.shards.reading import ShardError, open_shard
from divot_datamodules.shards.storage import ATTEMPTS, LocalShard, ShardBytes, file_system_options
from divot_lightning.errors import UserError, first_line
from divot_lightning.io.file_locks import exclusively
from divot_lightning.io.files import text_sha256

logger = logging.getLogger(__name__)

PIECE = 2**20
_LOCK = threading.Lock()
_OPENERS: dict[bytes, Callable[[BinaryIO], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}


class ShardCopies:
    """Copies shards into a folder, each once, and refuses to use more disk than allowed.

    Args:
        folder: Folder of the copies, which later runs use again; None for a temporary folder.
        max_bytes: Largest size of all copies together.
        allow_pipe: See `divot_datamodules.shards.reading.expand_shards`.
    """

    def __init__(self, folder: Path | None, max_bytes: int, *, allow_pipe: bool = False) -> None:
        self._folder, self.max_bytes, self.allow_pipe = folder, max_bytes, allow_pipe
        self._used = 0

    @property
    def folder(self) -> Path:
        """Folder of the copies; a temporary folder is made when it is first needed."""
        with _LOCK:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="divot-copies-"))
                weakref.finalize(self, _remove, self._folder, os.getpid())
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder

    def get(self, shard: str, stamp: str = "") -> tuple[LocalShard, str]:
        """Copy a shard, uncompressed, unless that was done before.

        Args:
            shard: Path, URL or command.
            stamp: Version of the shard, as far as known; another version is copied again.

        Returns:
            The copy, and why it is incomplete; "" if it is complete.
        """
        name = text_sha256(f"{shard}\n{stamp}")[:32]
        path, problem = self.folder / f"{name}.tar", ""
        with exclusively(path):
            if path.is_file():
                self._count(path.stat().st_size, shard)
            else:
                logger.info("%s cannot be read in parts; it is copied into %s once", shard, self.folder)
                path, problem = self._fetch(shard, path)
        return LocalShard(str(path), shard), problem

    def _fetch(self, shard: str, path: Path) -> tuple[Path, str]:
        """Copy a shard. If it breaks off in each attempt, keep the last part under a name that no later run uses."""
        # A name of its own, since locks do not work on all file systems.
        partial = path.with_suffix(f".{uuid.uuid4().hex}.part")
        for attempt in range(ATTEMPTS):
            before = self._used
            try:
                with closing(self._stream(shard)) as stream, partial.open("wb") as file:
                    self._copy(stream, file, shard)
                return partial.replace(path), ""
            except ShardError:
                raise
            except UserError:
                partial.unlink(missing_ok=True)
                raise
            except Exception as error:  # openers of many libraries, each with its own exceptions
                problem = first_line(error)
                if attempt < ATTEMPTS - 1:
                    self._used = before
                    time.sleep(shard_storage.PAUSE_SECONDS * 2**attempt)
        return partial, problem

    def _stream(self, shard: str) -> BinaryIO:
        if shard.startswith(("http://", "https://")):
            # A block size of 0 makes fsspec read front to back.
            return cast(BinaryIO, fsspec.open(shard, "rb", block_size=0, **file_system_options(shard)).open())
        return open_shard(shard, allow_pipe=self.allow_pipe)

    def _copy(self, stream: BinaryIO, file: BinaryIO, shard: str) -> None:
        head = stream.read(8)
        opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        joined = cast(BinaryIO, _Joined(head, stream))
        content = opener(joined) if opener else joined
        while piece := content.read(PIECE):
            self._count(len(piece), shard)
            file.write(piece)

    def _count(self, size: int, shard: str) -> None:
        with _LOCK:
            self._used += size
        folder = self.folder
        free = shutil.disk_usage(folder).free
        if self._used > self.max_bytes or free < PIECE:
            raise UserError(
                f"the shard {shard} can only be read as a copy, and the copies in {folder}\nwould take more "
                f"than the {self.max_bytes / 2**30:.3g} GiB allowed ({free / 2**30:.3g} GiB are free).\n"
                "Raise copies_gb, or put the shards, uncompressed, where parts can be read (a disk, s3, most servers)."
            )


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked worker
        shutil.rmtree(folder, ignore_errors=True)


class _Joined:
    """A stream whose first bytes were read already: returns these first, then the rest."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head, self._stream = head, stream

    def read(self, count: int = -1) -> bytes:
        if not self._head:
            return cast(bytes, self._stream.read(count))
        piece = self._head if count < 0 else self._head[:count]
        self._head = self._head[len(piece) :]
        return piece + cast(bytes, self._stream.read()) if count < 0 else piece


def is_compressed(shard: ShardBytes) -> bool:
    """Return whether a shard is a compressed file, which cannot be read in parts."""
    head = shard.read(0, min(8, shard.size))
    return any(head.startswith(magic) for magic in _OPENERS)
