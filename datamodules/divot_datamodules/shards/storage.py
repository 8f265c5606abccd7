"""Bytes of shards: any range of a local file or of an object behind a URL.

Nothing is shared across a fork: the process that reads also opens the files and file systems.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from stat import S_ISREG
from typing import Any, TypeAlias, TypeVar, cast

import fsspec

from divot_datamodules.shards.reading import ShardError, is_url
from divot_lightning.errors import first_line

T = TypeVar("T")

OPEN_FILES = 16
"""Files that a process keeps open, since the streams of the order return to the same shards."""

ATTEMPTS, PAUSE_SECONDS = 5, 0.5
"""Attempts of a remote read, and the pause after the first failure. It doubles each time: 7.5 seconds in all."""

CONNECT_SECONDS, SILENCE_SECONDS = 30.0, 60.0
"""Time limits for the answer of an http server, and for its next bytes; without them a dead server stops the run."""


class _OpenFiles:
    """A cache of open files of this process; the least recently used one is closed first."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[tuple[str, int, int], int] = OrderedDict()

    def read(self, path: str, start: int, end: int) -> bytes:
        """Read a range without the descriptor's position, so that threads can read at the same time."""
        if self._process != os.getpid():
            # After a fork: the parent's files stay with the parent.
            self._process, self._files = os.getpid(), OrderedDict()
        status = os.stat(path)  # a replaced file has another inode
        identity = (path, status.st_dev, status.st_ino)
        descriptor = self._files.pop(identity, None)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY)
        try:
            return _read_fully(descriptor, start, end)
        finally:
            self._keep(identity, descriptor)

    def _keep(self, identity: tuple[str, int, int], descriptor: int) -> None:
        if self._files.setdefault(identity, descriptor) != descriptor:
            os.close(descriptor)  # another thread opened the same file meanwhile
        while len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])


def _read_fully(descriptor: int, start: int, end: int) -> bytes:
    """Read a range in as many calls as it takes: one call gives at most 2 GiB, and less over some networks."""
    data = os.pread(descriptor, end - start, start)
    while data and len(data) < end - start:
        more = os.pread(descriptor, end - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


_OPEN_FILES = _OpenFiles()


class LocalShard:
    """A shard in a file.

    Args:
        path: The file.
        name: Name for reports, if it is not the path.

    Attributes:
        name: Name for reports.
        size: Bytes.
        stamp: Changes when the content changes (here the time of change).
        readahead: Bytes to read at once while headers are scanned.

    Raises:
        ShardError: "missing_shard", "unreadable_shard".
    """

    readahead = 2**16

    def __init__(self, path: str, name: str | None = None) -> None:
        self.path, self.name = path, name or path
        try:
            status = os.stat(path)
        except OSError as error:
            raise _shard_error(error) from error
        if not S_ISREG(status.st_mode):
            raise ShardError("it is no file", "unreadable_shard")  # opening a named pipe would wait for a writer
        self.size, self.stamp = status.st_size, f"changed {status.st_mtime_ns}"

    def read(self, start: int, end: int, *, once: bool = False) -> bytes:
        """Read exactly [start, end).

        Args:
            start: First byte.
            end: Byte after the last.
            once: Whether to give up at the first failure of a server.

        Raises:
            ShardError: "missing_shard", "unreadable_shard", or "shard_changed" if there are fewer bytes.
        """
        try:
            data = _OPEN_FILES.read(self.path, start, end)
        except OSError as error:
            raise _shard_error(error) from error
        return _whole(data, start, end)


def _whole(data: bytes, start: int, end: int) -> bytes:
    if len(data) != end - start:
        raise ShardError(f"bytes {start} to {end} were requested, {len(data)} came", "shard_changed")
    return data


def _shard_error(error: BaseException) -> ShardError:
    if _is_missing(error):
        return ShardError("it does not exist", "missing_shard")
    error = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return ShardError(first_line(error), "unreadable_shard")


class RemoteShard:
    """A shard behind a URL that fsspec knows.

    Args:
        url: Its URL.

    Attributes:
        ranges: Whether it can be read in parts. The other attributes are those of a `LocalShard`; the stamp is the
            ETag, hash or time of change, or "" if the server names none.

    Raises:
        ShardError: "missing_shard", "unreadable_shard".
    """

    readahead = 2**20

    def __init__(self, url: str) -> None:
        self.name = url
        try:
            facts = _tried(lambda: _find(url)[0].info(_find(url)[1]))
        except Exception as error:  # each file system has exceptions of its own
            raise _shard_error(error) from error
        self.size: int = facts.get("size") or 0
        stamps = (facts.get(name) for name in ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "mtime"))
        self.stamp = str(next((stamp for stamp in stamps if stamp), ""))
        self.ranges = self.size > 1 and _gives_ranges(url, facts)

    def read(self, start: int, end: int, *, once: bool = False) -> bytes:
        """Read exactly [start, end); see `LocalShard.read`."""
        if start == end:
            return b""
        try:
            data = _tried(lambda: _fetch(self.name, start, end), 1 if once else ATTEMPTS)
        except Exception as error:  # each file system has exceptions of its own
            raise _shard_error(error) from error
        return _whole(data, start, end)


ShardBytes: TypeAlias = LocalShard | RemoteShard
"""A shard whose ranges can be read."""


def file_system_options(url: str) -> dict[str, Any]:
    """Return fsspec's options for a URL: time limits for http servers, which have none by default."""
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"timeout": limits}}


def _find(url: str) -> tuple[Any, str]:
    """Return file system and path; fsspec caches file systems per process, and makes new ones after a fork."""
    return fsspec.core.url_to_fs(url, **file_system_options(url))


def _fetch(url: str, start: int, end: int) -> bytes:
    system, path = _find(url)
    return cast(bytes, system.cat_file(path, start=start, end=end))


def _gives_ranges(url: str, facts: dict[str, Any]) -> bool:
    """Return whether a server sends the requested range; some always send the whole file."""
    if not url.startswith(("http://", "https://")):
        return True
    system, path = _find(url)
    with suppress(ValueError), system.open(path, "rb", size=facts["size"], cache_type="none") as file:
        file.seek(1)
        return len(file.read(1)) == 1
    return False


def _tried(read: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Call `read` until it works: servers of shards fail now and then."""
    for attempt in range(attempts - 1):
        try:
            return read()
        except Exception as error:  # each file system has exceptions of its own
            if isinstance(error, PermissionError | ImportError) or _is_missing(error):
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return read()


def _is_missing(error: BaseException) -> bool:
    # fsspec's http raises FileNotFoundError for every error; its cause has the server's status.
    return isinstance(error, FileNotFoundError) and (
        error.__cause__ is None or getattr(error.__cause__, "status", None) in (404, 410)
    )


def read_whole(name: str, limit: int) -> bytes | None:
    """Read a small file or object whole; return None if it does not exist, cannot be read or is too large.

    Args:
        name: Path or URL.
        limit: Largest size in bytes.
    """
    try:
        file = RemoteShard(name) if is_url(name) else LocalShard(name)
        return file.read(0, file.size) if file.size <= limit else None
    except ShardError:
        return None
