"""Decoding in this process, or in workers that may hang, crash or be killed without ending the run."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol, cast

import torch
from pebble import ProcessExpired, ProcessPool

from divot_datamodules.decoding.sample_errors import SampleError
from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.shared_memory import SharedMemoryPool
from divot_datamodules.order.order_plan import SampleIndex
from divot_lightning.errors import UserError

MOST_REBUILDS = 3
"""Times in a row that all workers are replaced without a sample in between, before the run ends."""
MOST_STOPS = 8
"""Times that a sample's worker may be ended by SIGTERM."""
SMALLEST_SLOT_BYTES = 2**22
"""Bytes; a page of a place costs memory only once it was used, so that features find room as well."""
_GRACE_SECONDS = 15.0
_POLL_SECONDS = 1.0


class Request(NamedTuple):
    """Which sample is wanted.

    Attributes:
        data: Name of the data: "train", "validation", "test".
        slot: The sample's place in the order.
    """

    data: str
    slot: SampleIndex


Decode = Callable[[Request], Sample]


class Pending(Protocol):
    """A sample that was asked for."""

    def result(self) -> Sample:
        """Wait for the sample, whose tensors are valid until `release`.

        Raises:
            SampleError: It cannot be used.
        """
        ...

    def release(self) -> None:
        """Return up the sample, whether it came or not."""
        ...


class Decoding(Protocol):
    """Decodes what is asked for, in whichever process."""

    def submit(self, request: Request) -> Pending:
        """Ask for a sample."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def make_decoding(decode: Decode, *, num_workers: int, deadline: float, places: int, slot_bytes: int) -> "Decoding":
    """Return who decodes: this process without workers, else a pool of them.

    Args:
        decode: What is done.
        num_workers: Number of worker processes.
        deadline: Seconds for one sample; workers only.
        places: Samples that may be on their way at one time; workers only.
        slot_bytes: Memory of a sample's frames; workers only.
    """
    if num_workers == 0:
        return LazyDecoding(decode)
    return DecodePool(decode, num_workers, deadline, SharedMemoryPool(places, slot_bytes))


class LazyDecoding:
    """Decodes in this process, when the sample is waited for. No deadline can be kept."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def submit(self, request: Request) -> "LazySample":
        """Record what is wanted."""
        return LazySample(self.decode, request)

    def close(self) -> None:
        """Have nothing to end."""


class LazySample:
    """A sample that is decoded when it is waited for."""

    def __init__(self, decode: Decode, request: Request) -> None:
        self.decode, self.request = decode, request

    def result(self) -> Sample:
        """Decode."""
        return self.decode(self.request)

    def release(self) -> None:
        """Have nothing to give up."""


class DecodePool:
    """Decodes in forked worker processes, each sample with a deadline.

    A worker that is not done in time is killed and replaced, and so is one that dies; a sample whose worker died is
    tried once more. Workers end with this process, however it ends.

    Args:
        decode: What the workers do.
        num_workers: Number of processes.
        deadline: Seconds for one sample, reading included.
        arena: Where workers put the frames.
    """

    def __init__(self, decode: Decode, num_workers: int, deadline: float, arena: SharedMemoryPool) -> None:
        self.decode, self.num_workers, self.deadline, self.arena = decode, num_workers, deadline, arena
        self.outstanding: set[PooledSample] = set()
        self.given_up: set[Future[Any]] = set()
        self.last_done = time.monotonic()
        self._rebuilds = 0
        self._pool = self._make_pool()

    def _make_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.num_workers,
            initializer=_begin_worker,
            initargs=(self.decode, self.arena, os.getpid()),
            context=multiprocessing.get_context("fork"),
        )

    def submit(self, request: Request) -> "PooledSample":
        """Queue a request; workers take them in the order in which they were made."""
        return PooledSample(self, request, self.arena.acquire())

    def schedule(self, request: Request, place: int | None) -> "Future[Any]":
        """Hand a request to the workers."""
        try:
            future = self._hand_over(request, place)
        except RuntimeError:
            self.rebuild()
            future = self._hand_over(request, place)
        future.add_done_callback(self._note_done)
        return future

    def _hand_over(self, request: Request, place: int | None) -> "Future[Any]":
        try:
            # The first request starts the workers.
            return cast("Future[Any]", self._pool.schedule(_work, args=(request, place), timeout=self.deadline))
        except OSError as error:
            raise UserError(
                f"the {self.num_workers} workers that decode cannot be started: {error}\n"
                "Their locks lie in /dev/shm. If that is full, make room there (in a container: --shm-size 64m), or "
                "decode in the training process: --data.num_workers 0"
            ) from error

    def _note_done(self, future: "Future[Any]") -> None:
        self.last_done = time.monotonic()
        if not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool):
            self._rebuilds = 0

    def is_stuck(self) -> bool:
        """Return whether no sample came for longer than deadlines explain: the workers' queue itself is broken."""
        return time.monotonic() - self.last_done > 2 * self.deadline + _GRACE_SECONDS + 4 * self.num_workers

    def rebuild(self) -> None:
        """Replace all workers and asks anew for what they had not done.

        Raises:
            UserError: They are replaced again and again.
        """
        self._rebuilds += 1
        if self._rebuilds > MOST_REBUILDS:
            raise UserError(
                f"the {self.num_workers} workers that decode died {MOST_REBUILDS} times in a row.\n"
                "Is there enough memory? Lower data.num_workers, or set it to 0 to see the decoder's own error."
            )
        self._stop()
        for future in list(self.given_up):
            future.cancel()  # no worker has it any more, and its place in the arena is free
        self._pool, self.last_done = self._make_pool(), time.monotonic()
        for sample in sorted(self.outstanding, key=lambda sample: sample.number):
            sample.ask_again_if_lost()

    def close(self) -> None:
        """End the workers."""
        self._stop()

    def _stop(self) -> None:
        self._pool.stop()
        self._pool.join()


class PooledSample:
    """A sample that a worker decodes."""

    _numbers = itertools.count()

    def __init__(self, pool: DecodePool, request: Request, place: int | None) -> None:
        self.pool, self.request, self.place = pool, request, place
        self.deaths = 0
        self.number = next(self._numbers)
        self.future = pool.schedule(request, place)
        pool.outstanding.add(self)

    def result(self) -> Sample:
        """Wait; see `Pending`."""
        while True:
            self._wait()
            error = self.future.exception()
            if error is None:
                return self._unpack(self.future.result())
            if isinstance(error, TimeoutError):
                raise SampleError("deadline", f"not decoded within {self.pool.deadline:g} s")
            if isinstance(error, BrokenProcessPool):
                self.pool.rebuild()
            elif isinstance(error, ProcessExpired):
                self._worker_died(error)
            else:
                raise error

    def _wait(self) -> None:
        while not wait([self.future], timeout=_POLL_SECONDS).done:
            if self.pool.is_stuck():
                self.pool.rebuild()

    def _worker_died(self, error: ProcessExpired) -> None:
        self.deaths += 1
        # Whoever stops a job may signal its workers as well; the sample is not to blame for that.
        asked_to_stop = error.exitcode in (signal.SIGTERM, -signal.SIGTERM)
        if self.deaths > (MOST_STOPS if asked_to_stop else 1):
            raise SampleError(
                "worker_died", f"the process that decoded it ended with code {error.exitcode}, {self.deaths} times"
            )
        self.future = self.pool.schedule(self.request, self.place)

    def _unpack(self, answer: Any) -> Sample:
        if isinstance(answer, BaseException):
            raise answer
        return self.pool.arena.load(cast(Sample, answer))

    def ask_again_if_lost(self) -> None:
        """Ask anew if the workers that were asked are gone."""
        if not self.future.done() or isinstance(self.future.exception(), BrokenProcessPool):
            self.future = self.pool.schedule(self.request, self.place)

    def release(self) -> None:
        """Return up the sample; a worker that has not begun with it leaves it."""
        if self not in self.pool.outstanding:
            return
        self.pool.outstanding.discard(self)
        self.pool.arena.mark_unwanted(self.place)
        # Not cancelled: that would kill the worker that has it.
        self.pool.given_up.add(self.future)
        self.future.add_done_callback(self._free_place)

    def _free_place(self, future: "Future[Any]") -> None:
        self.pool.given_up.discard(future)
        self.pool.arena.release(self.place)


_worker: tuple[Decode, SharedMemoryPool] | None = None


def _begin_worker(decode: Decode, arena: SharedMemoryPool, parent: int) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = decode, arena
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """End this worker when the training process is gone, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(request: Request, place: int | None) -> Sample | Exception | None:
    """Decode in a worker; what is wrong with the sample is returned, so that no traceback crosses processes.

    Other errors are mistakes in a program: pebble carries them over with their traceback, and they end the run.
    """
    assert _worker is not None
    decode, arena = _worker
    if arena.is_unwanted(place):
        return None
    try:
        return arena.store(place, decode(request))
    except (SampleError, UserError) as error:
        return error.with_traceback(None)
