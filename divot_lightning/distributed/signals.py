"""Stops a run on a signal: all ranks stop after the same step, save once and exit with a documented code.

Saving is a collective, so it cannot happen inside a signal handler: ranks are interrupted at different points and would
wait for each other for ever. Here a handler only records the signal. After every optimizer step the ranks compare their
records, and if any rank has one, all stop at that step.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from divot_lightning.distributed.ranks import num_ranks
from divot_lightning.io.files import write_atomically

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that stop a run: the end of a job or of a spot machine, a scheduler's warning, Ctrl-C."""

STOPPED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: stopped by a signal with everything saved; the same command continues."""

INTERRUPTED_EXIT_CODE = 130
"""Stopped by Ctrl-C, as shells count it; saved as well, unless it was pressed a second time."""


TWICE_SECONDS = 0.5
"""A second Ctrl-C within this time is the same one: a terminal and a wrapper both send it."""


class StopSignals:
    """Records the first stop signal of this process; does nothing else in the handler.

    Ctrl-C counts as a request only between the first and the last step; before, and the second time, it is Python's
    own KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.received_at = 0.0
        self.training = False
        self.saving = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within the block; earlier handlers come back afterwards unless a stop was requested.

        A process that stops ignores further requests until it ends: a second signal would change its exit code.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            self.training = False
            for number, handler in before.items():
                if self.received is None or number == signal.SIGINT:
                    signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.received == signal.SIGINT and not self.saving and now - self.received_at > TWICE_SECONDS
        if number == signal.SIGINT and (again or not self.training):
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), now


class StopOnSignal(Checkpoint):
    """Ends training, with one checkpoint, after the step at which any rank has received a signal.

    It is a `Checkpoint` so that Lightning calls it after all other callbacks, when the step is done for them too. A
    validation that is due at this step is postponed until the run is resumed.

    Args:
        signals: The signals of this process.
        save: Saves a checkpoint of the last step, unless there is one; called on all ranks.
        record: File for step and signal, written by the first rank after the checkpoint.

    Attributes:
        stopped_by: The signal that stopped all ranks, None while they train.
    """

    def __init__(self, signals: StopSignals, save: Callable[[Trainer], None], record: Path) -> None:
        self.signals = signals
        self.save = save
        self.record = record
        self.stopped_by: signal.Signals | None = None
        self.group: Any = None
        self.last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step if a signal came while the model was loaded: there is nothing new to save."""
        self.group = cpu_group()
        self.last_step = trainer.global_step
        self.signals.training = True
        self.stopped_by = common_signal(self.signals.received, self.group)
        if self.stopped_by:
            self._write_record(trainer)
            raise SIGTERMException

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the signals of all ranks after an optimizer step, and let Lightning end the loop if any has one."""
        if trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        self.stopped_by = common_signal(self.signals.received, self.group)
        if self.stopped_by is None:
            return
        self.signals.received = self.stopped_by
        self.signals.saving = True
        trainer._signal_connector.received_sigterm = True  # Lightning leaves once it has logged this step

    def on_step_logged(self, trainer: Trainer) -> None:
        """Save the step after which all ranks stop."""
        if self.stopped_by is not None:
            self.save(trainer)
            self._write_record(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip the validation between the last step and the end of the loop."""
        if self.stopped_by is not None:
            raise SIGTERMException

    def _write_record(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or not self.record.parent.is_dir():
            return
        assert self.stopped_by is not None
        content = {
            "step": trainer.global_step,
            "signal": self.stopped_by.name,
            "exit_code": exit_code(self.stopped_by),
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        write_atomically(self.record, json.dumps(content) + "\n")


class NoSignalHandlers:
    """Replaces Lightning's signal handlers, which save or broadcast inside a handler.

    Attributes:
        received_sigterm: Lightning's training loop ends after the step at which it is set.
    """

    def __init__(self) -> None:
        self.received_sigterm = False

    def register_signal_handlers(self) -> None:
        """Register none."""

    def teardown(self) -> None:
        """Restore nothing, since nothing was registered."""


def common_signal(received: signal.Signals | None, group: Any = None) -> signal.Signals | None:
    """Return the signal that any rank has received, the same on all; of several, the one with the highest number.

    Args:
        received: The signal that this rank has received, if any.
        group: Ranks that talk over the CPU; all ranks call this together.
    """
    if num_ranks() == 1:
        return received
    number = torch.tensor([int(received or 0)], dtype=torch.int32)
    distributed.all_reduce(number, distributed.ReduceOp.MAX, group=group)
    return signal.Signals(int(number)) if number.item() else None


def cpu_group() -> Any:
    """Return a process group whose messages go over the CPU, so that a comparison never waits for a GPU."""
    if num_ranks() == 1:
        return None
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def exit_code(stopped_by: signal.Signals) -> int:
    """Return the exit status of a run that a signal stopped.

    >>> exit_code(signal.SIGTERM), exit_code(signal.SIGINT)
    (75, 130)
    """
    return INTERRUPTED_EXIT_CODE if stopped_by == signal.SIGINT else STOPPED_EXIT_CODE
