"""Reasons of failed processes, which the process that started them prints last, for the user. No torch."""

import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from divot_lightning.distributed.environment import local_rank
from divot_lightning.io.files import write_atomically

FOLDER_VARIABLE = "DIVOT_FAILURES"
"""Names the folder where the processes that the first one started leave their reasons."""

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""Names the file whose message torchrun shows in its table of failures."""

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "communicator was aborted")
"""Parts of the error messages of a process whose connection to a failed process broke."""

LATER_SECONDS = 60
"""Seconds that are added to the time of such an error, so that torchrun does not take it for the cause."""


class RankFailed(RuntimeError):
    """Another process of the job failed; the message says which one and why.

    Args:
        message: Text for the user.
        exit_code: The exit status of the job.
        lost_peer: Whether that process failed only because another one had ended.
    """

    def __init__(self, message: str, exit_code: int, *, lost_peer: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.lost_peer = lost_peer


class Failure(NamedTuple):
    """The reason of a failed process.

    Attributes:
        when: Seconds since the epoch.
        rank: Its local rank.
        by_user: Whether the user can fix it.
        lost_peer: Whether it failed because another process had ended.
        text: Text for the user.
    """

    when: float
    rank: int
    by_user: bool
    lost_peer: bool
    text: str


def note_failure(error: BaseException, text: str, *, by_user: bool) -> bool:
    """Write the reason of a failure into a file for the process that started this one.

    Args:
        error: The exception.
        text: Text for the user.
        by_user: Whether the user can fix it.

    Returns:
        Whether the other process will print it, so that this one need not.
    """
    lost_peer = is_lost_peer(error)
    _note_for_torchrun(error, text, lost_peer)
    folder, rank = os.environ.get(FOLDER_VARIABLE), local_rank()
    if not folder or rank == 0 or not Path(folder).is_dir():
        return False
    _write(Path(folder) / f"rank{rank}.json", Failure(time.time(), rank, by_user, lost_peer, text)._asdict())
    return True


def first_failure(folder: Path, exit_codes: dict[int, int | None]) -> RankFailed | None:
    """Return the reason why a job ends. Failures that a user can fix come first, broken connections last.

    A killed process leaves no reason; it comes before processes whose connection to it broke.

    Args:
        folder: Where the reasons were written.
        exit_codes: Exit status by local rank, None while a process runs, negative if a signal ended it.
    """
    failed = {rank: code for rank, code in exit_codes.items() if code}
    if not failed:
        return None
    notes = [note for note in map(_read, folder.glob("rank*.json")) if note]
    notes.sort(key=lambda note: (not note.by_user, note.lost_peer, note.when))
    noted = [note for note in notes if note.rank in failed]
    silent = [rank for rank in failed if rank not in {note.rank for note in noted}]
    if silent and all(note.lost_peer for note in noted):
        return RankFailed(f"rank {silent[0]} {describe_exit(failed[silent[0]])}", 1)
    first = noted[0]
    return RankFailed(f"rank {first.rank}: {first.text}", 2 if first.by_user else 1, lost_peer=first.lost_peer)


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error means that the connection to another process broke."""
    return any(words in str(error) for words in LOST_PEER)


def describe_exit(code: int) -> str:
    """Describe how a process ended.

    >>> describe_exit(-11)
    'was ended by SIGSEGV'
    >>> describe_exit(3)
    'ended with status 3'
    """
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _note_for_torchrun(error: BaseException, text: str, lost_peer: bool) -> None:
    file = os.environ.get(ERROR_FILE_VARIABLE)
    if file:
        # torchrun takes the failure with the earliest time for the cause
        when = int(time.time()) + (LATER_SECONDS if lost_peer else 0)
        extra = {"py_callstack": text, "timestamp": str(when)}
        _write(Path(file), {"message": {"message": f"{type(error).__name__}: {text}", "extraInfo": extra}})


def _write(file: Path, content: dict[str, object]) -> None:
    write_atomically(file, json.dumps(content))


def _read(file: Path) -> Failure | None:
    try:
        return Failure(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
