"""Decoding of samples: in this process, or in worker processes.

A worker may hang, crash or be killed: that costs at most its sample, and the run continues.
"""

import itertools
import multiprocessing
import os
import signal
import time
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias, cast

from pebble import ProcessExpired, ProcessPool

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.decode_worker import Decode, Request, begin_worker, decode_in_worker
from divot_datamodules.loading.shared_memory import SharedMemoryPool
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError

MOST_REBUILDS = 3
"""The run ends if all workers had to be replaced more often than this, with no sample decoded in between."""
MOST_STOPS = 8
"""A sample is given up if the workers that decode it are ended by SIGTERM more often than this."""
_GRACE_SECONDS = 15.0
_POLL_SECONDS = 1.0


def make_decoding(decode: Decode, *, num_workers: int, deadline: float, num_slots: int, slot_bytes: int) -> "Decoding":
    """Return a decoder: a pool of worker processes, or this process if there are no workers.

    Args:
        decode: Reads and decodes one sample.
        num_workers: Number of worker processes; 0 decodes in this process.
        deadline: Seconds for one sample; only with workers.
        num_slots: Buffer slots of the shared memory: samples that may be in flight at a time; only with workers.
        slot_bytes: Size of a buffer slot, for the frames of one sample; only with workers.
    """
    if num_workers == 0:
        return LazyDecoding(decode)
    return DecodePool(decode, num_workers, deadline, SharedMemoryPool(num_slots, slot_bytes))


class LazyDecoding:
    """Decodes in this process, when `result` is called. Deadlines have no effect here."""

    def __init__(self, decode: Decode) -> None:
        self.decode = decode

    def submit(self, request: Request) -> "LazySample":
        """Keep the request until its result is needed."""
        return LazySample(self.decode, request)

    def close(self) -> None:
        """Do nothing: there are no processes to end."""


class LazySample:
    """A sample that is decoded when `result` is called."""

    def __init__(self, decode: Decode, request: Request) -> None:
        self.decode, self.request = decode, request

    def result(self) -> Sample:
        """Decode the sample.

        Raises:
            SampleError: The sample cannot be used.
        """
        return self.decode(self.request)

    def release(self) -> None:
        """Do nothing: the sample has its own memory."""


class DecodePool:
    """Decodes in forked worker processes, each sample with a deadline.

    A worker that misses the deadline is killed and replaced; a worker that dies is replaced. If a worker dies, its
    sample is tried once more. Workers end when this process ends, even if it is killed.

    Args:
        decode: Reads and decodes one sample, in a worker.
        num_workers: Number of processes.
        deadline: Seconds for one sample, reading included.
        memory: Shared memory in which workers store the frames.
    """

    def __init__(self, decode: Decode, num_workers: int, deadline: float, memory: SharedMemoryPool) -> None:
        self.decode, self.num_workers, self.deadline, self.memory = decode, num_workers, deadline, memory
        self.outstanding: set[PooledSample] = set()
        self.given_up: set[Future[Any]] = set()
        self.last_done = time.monotonic()
        self._rebuilds = 0
        self._pool = self._make_pool()

    def _make_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.num_workers,
            initializer=begin_worker,
            initargs=(self.decode, self.memory, os.getpid()),
            context=multiprocessing.get_context("fork"),
        )

    def submit(self, request: Request) -> "PooledSample":
        """Queue a request; workers take requests in order."""
        return PooledSample(self, request, self.memory.acquire())

    def schedule(self, request: Request, slot: int | None) -> "Future[Any]":
        """Queue a request for the workers, which write the frames into a buffer slot."""
        try:
            future = self._hand_over(request, slot)
        except RuntimeError:  # pebble: the pool is broken
            self.rebuild()
            future = self._hand_over(request, slot)
        future.add_done_callback(self._note_done)
        return future

    def _hand_over(self, request: Request, slot: int | None) -> "Future[Any]":
        try:
            # The first request starts the workers.
            return cast(
                "Future[Any]", self._pool.schedule(decode_in_worker, args=(request, slot), timeout=self.deadline)
            )
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
        """Return whether no sample was decoded for so long that the workers' queue itself must be broken."""
        return time.monotonic() - self.last_done > 2 * self.deadline + _GRACE_SECONDS + 4 * self.num_workers

    def rebuild(self) -> None:
        """Replace all workers and request again the samples that they had not finished.

        Raises:
            UserError: All workers were replaced `MOST_REBUILDS` times in a row.
        """
        self._rebuilds += 1
        if self._rebuilds > MOST_REBUILDS:
            raise UserError(
                f"the {self.num_workers} workers that decode died {MOST_REBUILDS} times in a row.\n"
                "Is there enough memory? Lower data.num_workers, or set it to 0 to see the decoder's own error."
            )
        self.close()
        for future in list(self.given_up):
            future.cancel()  # no worker uses its buffer slot any more
        self._pool, self.last_done = self._make_pool(), time.monotonic()
        for sample in sorted(self.outstanding, key=lambda sample: sample.number):
            sample.request_again_if_unfinished()

    def close(self) -> None:
        """End the workers."""
        self._pool.stop()
        self._pool.join()


class PooledSample:
    """A sample that a worker decodes."""

    _numbers = itertools.count()

    def __init__(self, pool: DecodePool, request: Request, slot: int | None) -> None:
        self.pool, self.request, self.slot = pool, request, slot
        self.deaths = 0
        self.number = next(self._numbers)
        self.future = pool.schedule(request, slot)
        pool.outstanding.add(self)

    def result(self) -> Sample:
        """Wait for the sample, whose tensors are valid until `release`.

        Raises:
            SampleError: The sample cannot be used.
        """
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
        # Schedulers that stop a job send SIGTERM to its workers as well; then the sample is not the cause.
        got_sigterm = error.exitcode in (signal.SIGTERM, -signal.SIGTERM)
        if self.deaths > (MOST_STOPS if got_sigterm else 1):
            raise SampleError(
                "worker_died", f"the process that decoded it ended with code {error.exitcode}, {self.deaths} times"
            )
        self.future = self.pool.schedule(self.request, self.slot)

    def _unpack(self, answer: Any) -> Sample:
        if isinstance(answer, BaseException):
            raise answer
        return self.pool.memory.load(cast(Sample, answer))

    def request_again_if_unfinished(self) -> None:
        """Request the sample again if the workers that had the request are gone."""
        if not self.future.done() or isinstance(self.future.exception(), BrokenProcessPool):
            self.future = self.pool.schedule(self.request, self.slot)

    def release(self) -> None:
        """Give the sample and its buffer slot back; a worker that has not begun with it skips it."""
        if self not in self.pool.outstanding:
            return
        self.pool.outstanding.discard(self)
        self.pool.memory.mark_unneeded(self.slot)
        # The future is not cancelled, since pebble would kill the worker that runs it.
        self.pool.given_up.add(self.future)
        self.future.add_done_callback(self._free_slot)

    def _free_slot(self, future: "Future[Any]") -> None:
        self.pool.given_up.discard(future)
        self.pool.memory.release(self.slot)


Decoding: TypeAlias = LazyDecoding | DecodePool
"""Decodes requested samples, in this process or in others."""

Pending: TypeAlias = LazySample | PooledSample
"""A requested sample."""
