"""File locks: one process at a time, where several would write the same file or folder."""

import errno
import fcntl
import os
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


class WriterLock:
    """The right of this process to write into a folder, which another process that asks for it is refused.

    It is a POSIX record lock: it ends with the process however that ends, and workers that are forked do not have it.
    On file systems without locks nobody is refused.

    Args:
        path: The lock's file; removed when the lock is released or no longer used.
    """

    def __init__(self, path: Path) -> None:
        self._file = _locked(path)
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


def _locked(path: Path) -> TextIOWrapper:
    while True:
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _UNSUPPORTED:
                return path.open("a+")
            raise UserError(
                f"another process is writing into {path.parent} at this moment.\n"
                "Wait until it is done, or choose another output folder."
            ) from error
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its last owner removed it after we had opened and before we had locked it


def _drop(path: Path, file: TextIOWrapper, process: int) -> None:
    if os.getpid() == process:  # not in a forked worker
        # Removed before it is released: a process that has opened it sees that it has no name any more.
        path.unlink(missing_ok=True)
    file.close()
