"""One process per run folder: a lock of the operating system that ends with the process that holds it.

`<run>/run.lock` is locked with POSIX record locks (`fcntl.lockf`). The system releases them when their owner ends, and
forked workers do not inherit them, so a lock is never stale: a file left behind by a dead process is locked again.
Between machines they hold where the file system carries them (NFS version 4, or version 3 with lockd;
Lustre mounted with `flock`; not object stores mounted as folders).
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.training.run_folder import LOCK

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the first process of a job calls this, and its other ranks do not.

    Folders that were created for the lock and are still empty are removed with it, so that a refused run leaves nothing
    behind.

    Args:
        run: The run folder; it need not exist.

    Raises:
        UserError: Another process holds it; the message names host, process and since when.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(run / LOCK)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "is a file, or lies below one" if is_file else f"cannot be written: {error.strerror}"
        raise UserError(f"--run {run} {reason}; give another folder.") from error
    try:
        yield
    finally:
        # Removed before it is released: a process that has opened the old file sees that it has no name any more.
        (run / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = os.pread(descriptor, 4096, 0).decode(errors="replace")
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise UserError(_refusal(path.parent, text)) from error
            sys.stderr.write(
                f"warning: {path.parent} is on a file system without locks: make sure that only one job uses it\n"
            )
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(descriptor).st_nlink > 0:
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
            return descriptor
        os.close(descriptor)


def _refusal(run: Path, owner: str) -> str:
    try:
        fields = json.loads(owner)
        who = f"process {fields['pid']} on {fields['host']}, since {fields['since']}"
    except (ValueError, KeyError, TypeError):
        who = "a process that has only just started"
    return (
        f"{run} is in use by {who}: two processes on one run folder would destroy it.\n"
        "Wait for it or end it; for another run give another folder: --run ANOTHER_FOLDER"
    )
