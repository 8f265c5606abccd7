"""Start the processes of a job: forked where that saves time, with GPUs of their own where there are GPUs."""

import sys
from collections.abc import Sequence
from typing import IO

from divot_lightning.experiments.runner.fork_server import PYTHON, ForkServer
from divot_lightning.experiments.runner.processes import (
    Process,
    deal_gpus,
    start_process,
    step_environment,
    visible_gpus,
)


class ProcessStarter:
    """Starts the processes of a job; close it when they have ended.

    Args:
        jobs: Number of worker slots, among which GPUs are divided.
        fork: Whether several of the processes run our modules, so that a `ForkServer` pays.
    """

    def __init__(self, jobs: int, *, fork: bool) -> None:
        self.jobs, self.gpus = jobs, visible_gpus()
        # A forked process cannot use CUDA if a library has only looked for GPUs before.
        self.fork = fork and sys.platform == "linux" and not self.gpus
        self.server: ForkServer | None = None

    def start(self, command: Sequence[str], log: IO[bytes], slots: Sequence[int], locks: Sequence[int]) -> Process:
        """Start a process.

        Args:
            command: Its words.
            log: Where its output and its errors go.
            slots: Worker slots that it takes, one thread each.
            locks: File descriptors that it keeps open.
        """
        # The libraries of the server have read their number of threads when they were imported.
        if self.fork and len(slots) == 1 and tuple(command[:2]) == PYTHON:
            try:
                self.server = self.server or ForkServer(step_environment(threads=1))
                return self.server.start(command, log, locks)
            except OSError:  # somebody has ended the server: fresh processes do the same
                self.fork = False
        gpus = deal_gpus(self.gpus, self.jobs, slots)
        return start_process(command, log, threads=len(slots), gpus=gpus, keep_open=locks)

    def close(self) -> None:
        """End the server, if there is one."""
        if self.server:
            self.server.close()
