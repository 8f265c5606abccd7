"""Number and count of the processes of a job, and messages that are written once for all. No torch."""

import os
import sys
from typing import TextIO


def is_first_process() -> bool:
    """Return whether this is the job's first process, which alone writes a run's records.

    Torchrun gives every process its RANK. Otherwise the variables of SLURM, of Lightning's launcher (LOCAL_RANK) and
    of a launch by hand on several nodes (NODE_RANK) decide: the first process has 0, or nothing, in all of them.
    """
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))


def say(text: str, stream: TextIO | None = None) -> None:
    """Write text to a stream (standard error), once per job: only its first process does."""
    if is_first_process():
        (stream or sys.stderr).write(text)


def num_started() -> int:
    """Return the number of processes that torchrun or the like started for this job; 1 for one started alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process on its machine; 0 if it was started alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))
