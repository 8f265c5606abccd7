"""Errors of writing output, explained to the user: a full disk, a folder without permission, a file in the way."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from divot_lightning.errors import UserError

_FULL = "Make room and start the same command again, or choose another place."
_ELSEWHERE = "Choose another place, or have it made writable."
_REASONS = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the quota of the disk is used up", _FULL),
    errno.EFBIG: ("files there may not grow so large", _FULL),
    errno.EACCES: ("it may not be written by you", _ELSEWHERE),
    errno.EPERM: ("it may not be written by you", _ELSEWHERE),
    errno.EROFS: ("it is read-only", _ELSEWHERE),
    errno.ENOTDIR: ("there is a file where a folder is needed", _ELSEWHERE),
    errno.EEXIST: ("there is a file where a folder is needed", _ELSEWHERE),
    errno.EISDIR: ("there is a folder where a file is needed", _ELSEWHERE),
    errno.ENAMETOOLONG: ("its name is too long", _ELSEWHERE),
}


@contextmanager
def writing_to(target: str | Path) -> Iterator[None]:
    """Turn an error of writing a file or folder into a `UserError`.

    Args:
        target: The file or folder to write. Errors about files elsewhere are raised unchanged.

    Raises:
        UserError: With the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS or not _is_about(error, Path(target)):
            raise
        raise _explained(error, target) from error


def make_folder(folder: str | Path) -> None:
    """Make a folder for output, with its parents, if it is not there.

    Raises:
        UserError: It cannot be made, for whatever reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(error, folder) from error


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is or will be."""
    place = folder.absolute()
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.is_dir())).free


def require_writable(file: str | Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it takes; leaves nothing behind.

    Raises:
        UserError: With the reason and what to do.
    """
    file = Path(file)
    made = [folder for folder in file.parents if not folder.exists()]
    unfinished = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise _explained(OSError(error.errno, error.strerror, str(file)), file) from error
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _explained(error: OSError, target: str | Path) -> UserError:
    # Other errors than these come from file systems that have no folders of ours, such as /proc.
    reason, advice = _REASONS.get(error.errno or 0, ("no folder can be made there", _ELSEWHERE))
    return UserError(f"{error.filename or target} cannot be written: {reason}.\n{advice}")


def _is_about(error: OSError, target: Path) -> bool:
    """Return whether an error is about a target or its parents; the error of an open file names no file."""
    if error.filename is None:
        return True
    expected, found = os.path.abspath(target), os.path.abspath(os.fsdecode(error.filename))
    return found.startswith(expected) or expected.startswith(found)
