"""Lightning's launcher of one process per device, with an eye on them: who fails first ends the job, and is heard."""

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

from divot_lightning.distributed.failures import FOLDER_VARIABLE, RankFailed, first_failure, is_lost_peer
from divot_lightning.distributed.network import check_network
from divot_lightning.distributed.parent import VARIABLE as PARENT_VARIABLE
from divot_lightning.distributed.parent import named_parent
from divot_lightning.distributed.rank_sync import RankDesyncError
from divot_lightning.errors import UserError

LOOK_SECONDS = 0.2
"""Between two looks at the processes."""

SECONDARY_SECONDS = 3.0
"""For so long the first process, when it fails, waits to learn whether another one failed before it."""

LOST_PEER_SECONDS = 20.0
"""The same where the connection to another one broke, so that it must be ending, on a busy machine slowly."""

LEAVE_SECONDS = 60.0
"""For so long the first process waits for the others to leave at the end."""


class WatchedLauncher(_SubprocessScriptLauncher):
    """Starts a process per device and ends the whole job within seconds when one of them fails.

    Lightning looks every five seconds and then kills the first process, which cannot say why any more. Here the first
    process prints the reason of the one that failed and leaves with its exit status. To be used inside `watched`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.procs: list[subprocess.Popen[bytes]] = []
        self.notes: tempfile.TemporaryDirectory[str] | None = None
        self.settled = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True, name="rank-watch")

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, unless a cluster has, and calls the function in this one; arguments as Lightning's."""
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
        """Return the reason why a started process failed, waiting up to `patience` seconds for one that does."""
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
        """Wait until the started processes have left, and kills those that do not."""
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
            # The first process mostly notices by itself, by a broken connection, and tells the reason on its way out.
            if failed and not self.settled.wait(SECONDARY_SECONDS):
                failed = self.failure() or failed  # the cause may have ended later than those that lost it
                self.kill(signal.SIGKILL)
                sys.stderr.write(f"\nerror: {failed}\n")
                sys.stderr.flush()
                os._exit(failed.exit_code)


@contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Surround `trainer.fit` and the like: what happened in another process comes out as `RankFailed`.

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
        # A process that did not come may have ended: that, then, is the reason. A lost one takes a while to be gone.
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
    return FOLDER_VARIABLE in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
