"""One process per run folder: a lock of the operating system that ends with the process that holds it."""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.io.file_locks import FileHeld, lock_file, unlock_file
from divot_lightning.training.run_folder import LOCK


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the first process of a job calls this, and its other ranks do not.

    A folder that was created for the lock is removed with it if no work is in it, so that a refused run leaves nothing
    behind. Indexes of shards and lists of skipped samples are work.

    Args:
        run: The run folder; it need not exist.

    Raises:
        UserError: Another process holds it; the message names host, process and since when.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = lock_file(run / LOCK)
    except FileHeld as error:
        raise UserError(_refusal(run, str(error))) from error
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "is a file, or lies below one" if is_file else f"cannot be written: {error.strerror}"
        raise UserError(f"--run {run} {reason}; give another folder.") from error
    try:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        file.truncate(0)
        file.write(json.dumps(owner))
        file.flush()
        yield
    finally:
        unlock_file(run / LOCK, file)
        with contextlib.suppress(OSError):
            if made and not _holds_work(run):
                shutil.rmtree(run)
                for folder in made[1:]:
                    folder.rmdir()


def _holds_work(run: Path) -> bool:
    from divot_datamodules.shards.content import FILE_NAME  # not at the top: `divot resume --help` needs no data

    return any(not path.is_dir() and path.name != FILE_NAME for path in run.rglob("*"))


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
