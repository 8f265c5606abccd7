"""Bytes of shards: any range of a local file or of an object behind a URL.

Nothing here is shared over a fork: files are opened, and file systems looked up, in the process that reads.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from stat import S_ISREG
from typing import Any, Protocol, TypeVar, cast

import fsspec

from divot_datamodules.shards.reading import ShardError, first_line, is_url

T = TypeVar("T")

OPEN_FILES = 16
"""Files that a process keeps open; streams of the order come back to the same shards."""

ATTEMPTS, PAUSE_SECONDS = 5, 0.5
"""How often a remote read is tried, and the pause after the first failure, which doubles: 7.5 seconds in all."""

CONNECT_SECONDS, SILENCE_SECONDS = 30.0, 60.0
"""How long an http server may take to answer, and to send on; without limits a dead one would stop the run."""


class ShardBytes(Protocol):
    """A shard whose ranges can be read.

    Attributes:
        name: Path or URL.
        size: Bytes.
        stamp: What changes when the content does (time of change, ETag); "" where nothing is known.
        readahead: Bytes worth reading at once while headers are scanned.
    """

    name: str
    size: int
    stamp: str
    readahead: int

    def read(self, start: int, end: int, *, once: bool = False) -> bytes:
        """Read exactly [start, end).

        Args:
            start: First byte.
            end: Byte after the last.
            once: Whether to give up at the first failure of a server.

        Raises:
            ShardError: "missing_shard", "unreadable_shard", or "shard_changed" if fewer bytes are there.
        """
        ...


class _OpenFiles:
    """The few files that this process has open, the least recently used of which is closed for the next."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[tuple[str, int, int], int] = OrderedDict()

    def read(self, path: str, start: int, end: int) -> bytes:
        """Read a range; the position of the descriptor is not used, so that threads may read at the same time."""
        if self._process != os.getpid():
            self._process, self._files = os.getpid(), OrderedDict()  # those of the parent are left to it
        status = os.stat(path)  # a file that was replaced is another one
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
        name: What it is called in reports, if that is not its path.

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
        """Read exactly [start, end); see `ShardBytes`."""
        try:
            data = _OPEN_FILES.read(self.path, start, end)
        except OSError as error:
            raise _shard_error(error) from error
        return _whole(data, start, end)


def _whole(data: bytes, start: int, end: int) -> bytes:
    if len(data) != end - start:
        raise ShardError(f"bytes {start} to {end} were asked for, {len(data)} were given", "shard_changed")
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
        ranges: Whether parts of it can be read.

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
        """Read exactly [start, end); see `ShardBytes`."""
        if start == end:
            return b""
        try:
            data = _tried(lambda: _fetch(self.name, start, end), 1 if once else ATTEMPTS)
        except Exception as error:  # each file system has exceptions of its own
            raise _shard_error(error) from error
        return _whole(data, start, end)


def file_system_options(url: str) -> dict[str, Any]:
    """Return the options with which fsspec opens a URL: limits for http servers, which have none by default."""
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"timeout": limits}}


def _find(url: str) -> tuple[Any, str]:
    """Find file system and path; fsspec keeps the file systems of a process and starts anew after a fork."""
    return fsspec.core.url_to_fs(url, **file_system_options(url))


def _fetch(url: str, start: int, end: int) -> bytes:
    system, path = _find(url)
    return cast(bytes, system.cat_file(path, start=start, end=end))


def _gives_ranges(url: str, facts: dict[str, Any]) -> bool:
    """Return whether a server gives the bytes that are asked for; some give all, whatever is asked."""
    if not url.startswith(("http://", "https://")):
        return True
    system, path = _find(url)
    with suppress(ValueError), system.open(path, "rb", size=facts["size"], cache_type="none") as file:
        file.seek(1)
        return len(file.read(1)) == 1
    return False


def _tried(read: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Call until it works: servers of shards fail now and then."""
    for attempt in range(attempts - 1):
        try:
            return read()
        except Exception as error:  # each file system has exceptions of its own
            if isinstance(error, PermissionError | ImportError) or _is_missing(error):
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return read()


def _is_missing(error: BaseException) -> bool:
    # fsspec's http calls everything "not found"; the error behind it knows the server's answer.
    return isinstance(error, FileNotFoundError) and (
        error.__cause__ is None or getattr(error.__cause__, "status", None) in (404, 410)
    )


def read_whole(name: str, limit: int) -> bytes | None:
    """Read a small file or object; None if it is not there or cannot be read.

    Args:
        name: Path or URL.
        limit: Bytes; more than that is not read.
    """
    try:
        file = RemoteShard(name) if is_url(name) else LocalShard(name)
        return file.read(0, file.size) if file.size <= limit else None
    except ShardError:
        return None
