"""Break runs on purpose: kills, signals, errors on one rank, full disks, damaged files. Only our own tests use it.

`python -m tests.helpers.faults ...` is the `divot` command with a fault at an exact place:

    with Job.divot("resume", "--config", "recipe.yaml", fault=Fault("kill", step=5, rank=1)) as job:
        assert job.wait() == 1
        print(job.output)

`tests.helpers.jobs.Job` also sends signals to a running command from outside, to one rank or to all.
"""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import synchronize
from pathlib import Path
from typing import Any, Literal

VARIABLE = "DIVOT_FAULT"
"""Holds the fault as JSON, for all processes of a job."""

Action = Literal["kill", "SIGTERM", "SIGUSR1", "SIGINT", "user_error", "crash", "hang", "full_disk"]
Moment = Literal["start", "step", "logged", "save", "validation", "next"]


@dataclass(frozen=True)
class Fault:
    """A fault: what goes wrong, on which rank, and when.

    Attributes:
        action: `kill` is `kill -9`; `user_error` and `crash` raise; `hang` stays for an hour; `full_disk` lets every
            write fail that makes a file longer than `bytes_left`.
        step: Optimizer steps done when it happens.
        rank: On which rank; None for all.
        moment: `start` when training starts, `step` when the step is done, `logged` when its metrics are written and
            before it is saved, `save` when writing its checkpoint starts, `validation` when a validation after
            it has begun, `next` when the next step begins.
        delay: Seconds after the moment, during which the process continues; for `kill` and signals.
        bytes_left: See `full_disk`.
    """

    action: Action
    step: int = 0
    rank: int | None = 0
    moment: Moment = "step"
    delay: float = 0.0
    bytes_left: int = 64_000

    def happen(self) -> None:
        """Cause the fault, now or after the delay."""
        if self.delay:
            threading.Timer(self.delay, self._act).start()
        else:
            self._act()

    def _act(self) -> None:
        from divot_lightning.errors import UserError

        if self.action == "user_error":
            raise UserError(f"this fault was requested at step {self.step}: request none")
        if self.action == "crash":
            raise RuntimeError(f"this fault was requested at step {self.step}")
        if self.action == "hang":
            time.sleep(3600.0)
        elif self.action == "full_disk":
            limit_file_size(self.bytes_left)
        else:
            os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.Signals[self.action])


def damage_file(file: Path, *, at: int | None = None, keep_bytes: int | None = None) -> None:
    """Flip a byte, or cut the end off.

    Args:
        file: The file.
        at: Position of the byte that changes; the middle by default.
        keep_bytes: Cut the file to this length instead.
    """
    if keep_bytes is not None:
        os.truncate(file, keep_bytes)
        return
    with file.open("r+b") as stream:
        position = file.stat().st_size // 2 if at is None else at
        stream.seek(position)
        old = stream.read(1)
        stream.seek(position)
        stream.write(bytes([old[0] ^ 0xFF]))


def limit_file_size(size: int) -> None:
    """Let every write of this process fail that makes a file longer than `size` bytes, for the rest of its life.

    The error is EFBIG where a full disk gives ENOSPC, and it needs no rights. It also hits a log that it writes to.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # or the kernel would end the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    """Surround writes that fail; see `limit_file_size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_file_size(size)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_shared_memory() -> Iterator[None]:
    """Surround code that finds /dev/shm full: no lock that processes share can be made, as in a small container."""
    former = synchronize.SemLock.__init__

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    synchronize.SemLock.__init__ = fail  # type: ignore[method-assign]
    try:
        yield
    finally:
        synchronize.SemLock.__init__ = former  # type: ignore[method-assign]


@contextlib.contextmanager
def no_loopback() -> Iterator[None]:
    """Surround code that finds no network interface for connections of this machine to itself."""
    former = socket.create_connection

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    socket.create_connection = fail
    try:
        yield
    finally:
        socket.create_connection = former


_read_only: list[Path] = []


@contextlib.contextmanager
def read_only_folder(folder: Path) -> Iterator[None]:
    """Surround code for which nothing in a folder can be written, even by root: another's folder, a mounted archive.

    It covers files that Python itself opens, creates, renames and removes.
    """
    if not _read_only_hook:
        _read_only_hook.append(_refuse_writing)
        sys.addaudithook(_refuse_writing)  # cannot be taken back, but does nothing outside
    _read_only.append(folder.resolve())
    try:
        yield
    finally:
        _read_only.pop()


_read_only_hook: list[Any] = []
_WRITING_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")


def _refuse_writing(event: str, args: tuple[Any, ...]) -> None:
    if not _read_only or not (event == "open" or event in _WRITING_EVENTS):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return
    for name in args[:1] if event == "open" else args[:2]:
        if isinstance(name, str | os.PathLike):
            path = Path(os.path.abspath(name))
            if any(path.is_relative_to(folder) for folder in _read_only):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))


def fault_callback(fault: Fault) -> Any:
    """Build the Lightning callback that lets a fault happen."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class FaultCallback(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self._at("start", trainer)

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self._at("step", trainer)

        def on_step_logged(self, trainer: Trainer) -> None:
            self._at("logged", trainer)

        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            self._at("save", trainer)

        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            self._at("validation", trainer)

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self._at("next", trainer)

        def _at(self, moment: Moment, trainer: Trainer) -> None:
            if (moment, trainer.global_step) == (fault.moment, fault.step) and fault.rank in (
                None,
                trainer.global_rank,
            ):
                fault.happen()

    return FaultCallback()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a `divot` command with the fault that the environment names, if any."""
    from divot_lightning.cli.main import main as divot
    from divot_lightning.training import runs as training
    from divot_lightning.training.training_cli import TrainingCLI

    text = os.environ.get(VARIABLE)
    if text:
        fault = Fault(**json.loads(text))

        class FaultyCLI(TrainingCLI):
            def instantiate_trainer(self, **kwargs: Any) -> Any:
                trainer = super().instantiate_trainer(**kwargs)
                trainer.callbacks.insert(0, fault_callback(fault))  # type: ignore[attr-defined]
                return trainer

        training.TrainingCLI = FaultyCLI  # type: ignore[misc]
    return divot(argv)


if __name__ == "__main__":
    sys.exit(main())
