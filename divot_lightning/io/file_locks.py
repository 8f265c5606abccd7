"""File locks: one process at a time, where several would write the same file or folder."""

import errno
import fcntl
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from divot_lightning.errors import UserError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Wait until no other process is in the same block for the same path.

    On file systems without locks no process waits; the block must be correct then, too.

    Args:
        path: The file or folder to write; the lock is a file `<path>.lock` beside it, which stays there.
    """
    with path.with_name(path.name + ".lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class FileHeld(Exception):
    """Another process holds a lock; the message is what that process wrote into the lock's file."""


def lock_file(path: Path) -> TextIOWrapper:
    """Open a file, made if it is missing, and lock it until it is closed or this process ends, for any reason.

    It is a POSIX record lock: forked workers do not have it, and a file that a dead process left is locked again.
    Between machines it holds on NFS version 4, or 3 with lockd, and on Lustre mounted with `flock`. On file systems
    without locks, such as object stores mounted as folders, a warning is written and every process is let through.

    Raises:
        FileHeld: Another process has it.
    """
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                where = f"{path.parent} is on a file system without locks"
                sys.stderr.write(f"warning: {where}: make sure that only one process writes into it\n")
                return file
            file.seek(0)
            content = file.read()
            file.close()
            raise FileHeld(content) from error
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its last owner removed it after we had opened and before we had locked it


def unlock_file(path: Path, file: TextIOWrapper) -> None:
    """Remove and release a file from `lock_file`; who has opened it meanwhile sees that it has no name any more."""
    path.unlink(missing_ok=True)
    file.close()


class WriterLock:
    """The right of this process to write into a folder, which another process that asks for it is refused.

    Args:
        path: The lock's file; removed when the lock is released or no longer used.

    Raises:
        UserError: Another process has it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = lock_file(path)
        except FileHeld as error:
            raise UserError(
                f"another process is writing into {path.parent} at this moment.\n"
                "Wait until it is done, or choose another output folder."
            ) from error
        self._drop = weakref.finalize(self, _drop, path, self._file, os.getpid())

    def release(self) -> None:
        """Let another process write."""
        self._drop()


_held: "weakref.WeakValueDictionary[Path, WriterLock]" = weakref.WeakValueDictionary()


def writer_lock(path: Path) -> WriterLock:
    """Take the right to write, or the one that this process has already: after an interrupted call it continues.

    Args:
        path: The lock's file, in the folder that is written.

    Raises:
        UserError: Another process has it.
    """
    path = Path(os.path.abspath(path))
    lock = _held.get(path)
    if lock is None or not lock._drop.alive:
        lock = _held[path] = WriterLock(path)
    return lock


def _drop(path: Path, file: TextIOWrapper, process: int) -> None:
    if os.getpid() == process:
        unlock_file(path, file)
    else:  # a forked worker has no lock
        file.close()
