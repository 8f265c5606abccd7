"""One job per folder, or one per part of a larger job."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from divot_lightning.errors import UserError

LOCK_SECONDS = 30.0
"""Seconds to wait until the processes of a killed job have ended."""
POLL_SECONDS = 0.2


@contextmanager
def job_lock(folder: Path, part: str) -> Iterator[tuple[int, ...]]:
    """Lock a folder within the block.

    A part excludes the part of its own name and the whole job; the whole job excludes all.

    Args:
        folder: Holds the lock files.
        part: Name of the part, "" for the whole job.

    Yields:
        The open lock files. Processes of the job keep them open, so the lock lasts until the last of them has ended.

    Raises:
        UserError: Another job has it.
    """
    kinds = {"lock": fcntl.LOCK_SH if part else fcntl.LOCK_EX} | {f"{part}lock": fcntl.LOCK_EX}
    with ExitStack() as files:
        locks = {name: files.enter_context((folder / name).open("w")) for name in kinds}
        for name, kind in kinds.items():
            _lock(locks[name], kind, folder)
        yield tuple(lock.fileno() for lock in locks.values())


def _lock(lock: IO[str], kind: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"another job is working in {folder.parent}\nWait for it, or give another --folder."
                ) from None
            time.sleep(POLL_SECONDS)
