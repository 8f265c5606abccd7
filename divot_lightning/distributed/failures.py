"""Why a process of a job failed, told by the process that started it, as the last thing that a user sees. No torch."""

import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

FOLDER_VARIABLE = "DIVOT_FAILURES"
"""Names the folder where the processes that the first one started leave their reasons."""

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""Names the file whose message torchrun shows in its table of failures."""

LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "communicator was aborted")
"""Words of errors that a process gets when another one has failed."""

LATER_SECONDS = 60
"""How much later such an error is dated for torchrun."""


class RankFailed(RuntimeError):
    """Another process of the job failed; the message says which one and why.

    Args:
        message: What a user reads.
        exit_code: The exit status of the job.
        lost_peer: Whether that process failed only since yet another one was gone.
    """

    def __init__(self, message: str, exit_code: int, *, lost_peer: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.lost_peer = lost_peer


class Failure(NamedTuple):
    """What a process left behind.

    Attributes:
        when: Seconds since the epoch.
        rank: Its local rank.
        by_user: Whether the user can fix it.
        lost_peer: Whether it failed because another process was gone.
        text: What a user should read.
    """

    when: float
    rank: int
    by_user: bool
    lost_peer: bool
    text: str


def note_failure(error: BaseException, text: str, *, by_user: bool) -> bool:
    """Leave the reason of a failure where whoever started this process looks for it.

    Args:
        error: What was raised.
        text: What a user should read.
        by_user: Whether the user can fix it.

    Returns:
        Whether somebody will show it, so that this process need not.
    """
    lost_peer = is_lost_peer(error)
    _note_for_torchrun(error, text, lost_peer)
    folder, rank = os.environ.get(FOLDER_VARIABLE), int(os.environ.get("LOCAL_RANK", "0"))
    if not folder or rank == 0 or not Path(folder).is_dir():
        return False
    _write_json(Path(folder) / f"rank{rank}.json", Failure(time.time(), rank, by_user, lost_peer, text)._asdict())
    return True


def first_failure(folder: Path, exit_codes: dict[int, int | None]) -> RankFailed | None:
    """Return the reason why a job ends: what a user can fix first, what follows from a lost peer last.

    A process that was killed leaves no note, and comes before those that failed since it was gone.

    Args:
        folder: Where failures were noted.
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
    """Return whether an error is what a process gets when another one is gone."""
    return any(words in str(error) for words in LOST_PEER)


def describe_exit(code: int) -> str:
    """Return how a process ended.

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
        # torchrun calls the failure with the earliest second the cause of all
        when = int(time.time()) + (LATER_SECONDS if lost_peer else 0)
        extra = {"py_callstack": text, "timestamp": str(when)}
        _write_json(Path(file), {"message": {"message": f"{type(error).__name__}: {text}", "extraInfo": extra}})


def _write_json(file: Path, content: dict[str, object]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.rename(file)


def _read(file: Path) -> Failure | None:
    try:
        return Failure(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
