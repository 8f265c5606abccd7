"""Lightning's launcher of one process per device, watched: the first failure ends the job with a printed reason."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from divot_lightning.distributed.environment import local_rank
from divot_lightning.distributed.failures import FOLDER_VARIABLE, RankFailed, first_failure, is_lost_peer
from divot_lightning.distributed.network import check_network
from divot_lightning.distributed.parent import VARIABLE as PARENT_VARIABLE
from divot_lightning.distributed.parent import named_parent
from divot_lightning.distributed.rank_sync import RankDesyncError
from divot_lightning.errors import UserError

LOOK_SECONDS = 0.2
"""Seconds between two checks of the processes."""

SECONDARY_SECONDS = 3.0
"""Seconds that the first process, when it fails, waits for the failure of another process, which may be the cause."""

LOST_PEER_SECONDS = 20.0
"""The same if a connection broke: the other process is ending, which takes longer on a busy machine."""

LEAVE_SECONDS = 60.0
"""Seconds that the first process waits for the others at the end."""


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts a process per device and ends the whole job within seconds when one of them fails.

    Lightning checks every five seconds and then kills the first process, so that no reason is printed. Here the first
    process prints the reason of the failed one and exits with its status. Use it inside `watched`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.procs: list[subprocess.Popen[bytes]] = []
        self.notes: tempfile.TemporaryDirectory[str] | None = None
        self.settled = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True, name="rank-watch")

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, unless a cluster has, and call the function in this one; arguments as Lightning's."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            check_network(self.cluster_environment.main_address)
            self.notes = tempfile.TemporaryDirectory(prefix="divot_failures")
            os.environ[FOLDER_VARIABLE] = self.notes.name
            os.environ.update(named_parent("KILL"))
            self._call_children_scripts()
            del os.environ[PARENT_VARIABLE]
            self.watch.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def failure(self, patience: float = 0.0) -> RankFailed | None:
        """Return the reason of a failed process, None if none fails within `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            codes = {rank: process.poll() for rank, process in enumerate(self.procs, start=1)}
            found = first_failure(Path(self.notes.name), codes) if self.notes else None
            is_cause = found is not None and not found.lost_peer
            if is_cause or time.monotonic() >= deadline or not self.procs:
                return found
            time.sleep(LOOK_SECONDS / 4)

    def kill(self, signum: int) -> None:
        """Send a signal to the started processes."""
        for process in self.procs:
            process.send_signal(signum)

    def wait(self) -> None:
        """Wait until the started processes have ended; kill those that take too long."""
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in self.procs:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def close(self) -> None:
        """End the watch."""
        self.settled.set()
        if self.notes:
            if self.watch.is_alive():
                self.watch.join()  # it may be reading the notes
            os.environ.pop(FOLDER_VARIABLE, None)
            self.notes.cleanup()

    def _watch(self) -> None:
        while not self.settled.wait(LOOK_SECONDS):
            failed = self.failure()
            # The first process usually notices a broken connection itself, and prints the reason when it ends.
            if failed and not self.settled.wait(SECONDARY_SECONDS):
                failed = self.failure() or failed  # processes that lost their connection may end before the cause does
                self.kill(signal.SIGKILL)
                sys.stderr.write(f"\nerror: {failed}\n")
                sys.stderr.flush()
                os._exit(failed.exit_code)


@contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Surround `trainer.fit` and the like: the failure of another process is raised here as `RankFailed`.

    Raises:
        RankFailed: Another process failed first.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, WatchedLauncher):
        yield
        return
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, RankDesyncError):
            launcher.kill(signal.SIGKILL)
            raise
        # A missing process may have ended: that is then the reason. A process that lost its peer ends a little later.
        failed = launcher.failure(LOST_PEER_SECONDS if is_lost_peer(error) else SECONDARY_SECONDS)
        launcher.kill(signal.SIGKILL)
        if failed:
            raise failed from error
        raise
    except BaseException:
        launcher.wait()
        raise
    else:
        launcher.wait()
    finally:
        launcher.close()


def watch_processes(trainer: Trainer) -> None:
    """Replace Lightning's launcher of a process per device by `WatchedLauncher`."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = WatchedLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )


def is_started_by_rank_zero() -> bool:
    """Return whether the job's first process has started this one, and not a cluster or torchrun."""
    return FOLDER_VARIABLE in os.environ and local_rank() != 0
