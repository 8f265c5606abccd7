"""One process at a time, where several would do the same work into the same file."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Waits until no other process is in the same block for the same path.

    On file systems without locks all go on at once; what is done in the block must be right then, too.

    Args:
        path: What is made; a file `<path>.lock` beside it is the lock, and is left there.
    """
    with path.with_name(path.name + ".lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
