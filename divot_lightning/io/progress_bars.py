"""Progress bars of processes whose output goes into a file."""

import os
import sys

BAR_SECONDS = 10.0
"""Seconds between two states of a progress bar in a file or a pipe, about 30 kB per hour."""


def slow_progress_bars() -> None:
    """Let progress bars write only every few seconds if no terminal shows them, as in the log of a job.

    tqdm reads its defaults from the environment, so this applies to all commands and their processes.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(BAR_SECONDS))
