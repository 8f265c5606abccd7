"""A short queue of jobs and the one thread that does them: models serve one request at a time.

No torch in here.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from divot_lightning.errors import UserError, first_line

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]
WARNINGS_OF = "divot_lightning.inference"
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")


class Cancelled(Exception):
    """The user does not want the job's result any more."""


class QueueFull(UserError):
    """As many jobs wait as are allowed."""


@dataclass(eq=False)
class Job:
    """One request and how far it is.

    Attributes:
        kind: What to do, such as "generate".
        request: What the browser sent, unchecked.
        id: A name that nobody can guess; results are stored under it.
        state: Where it is in its life.
        stage: What it does now, in words.
        fraction: How much of it is done, in [0, 1]; None if that is not known.
        result: JSON values for the page; grows while the job runs.
        error: Why it failed.
        notes: Warnings, such as words that the model does not know.
    """

    kind: str
    request: Mapping[str, Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "waiting"
    stage: str = ""
    fraction: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    notes: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def tell(self, stage: str, fraction: float | None = None) -> None:
        """Say what is being done now; raise `Cancelled` if nobody wants it any more."""
        if self.stop.is_set():
            raise Cancelled
        self.stage, self.fraction = stage, fraction

    def note(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self.notes:
            self.notes.append(text)


class JobQueue:
    """Does jobs one after another, in a thread of its own.

    Args:
        act: Does a job; fills its `result`.
        forget: Deletes what a job with this id has left.
        waiting: Most jobs that wait.
        results: Most finished jobs that are remembered.
    """

    def __init__(
        self, act: Callable[[Job], None], forget: Callable[[str], object], *, waiting: int, results: int
    ) -> None:
        self._act, self._forget, self._most_waiting, self._most_results = act, forget, waiting, results
        self._jobs: dict[str, Job] = {}
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="divot demo", daemon=True)
        self._thread.start()

    def submit(self, kind: str, request: Mapping[str, Any]) -> Job:
        """Add a job at the end of the queue.

        Raises:
            QueueFull: Too many jobs wait already.
        """
        with self._changed:
            waiting = len(self._waiting())
            if waiting >= self._most_waiting:
                raise QueueFull(f"The queue is full: {waiting} jobs are waiting. Try again in a while.")
            job = Job(kind, request)
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job

    def cancel(self, name: str) -> None:
        """Stop a job, or take it out of the queue; a finished one stays as it is."""
        with self._changed:
            job = self.find(name)
            job.stop.set()
            if job.state == "waiting":
                job.state = "cancelled"

    def find(self, name: str) -> Job:
        """Return a job.

        Raises:
            UserError: It is not known, or not any more.
        """
        if name not in self._jobs:
            raise UserError("This job is not known any more. Start it again.")
        return self._jobs[name]

    def describe(self, name: str) -> dict[str, Any]:
        """Return the state of a job as JSON values; `ahead` is the number of jobs before it."""
        with self._changed:
            job, waiting = self.find(name), self._waiting()
            running = any(one.state == "running" for one in self._jobs.values())
            ahead = waiting.index(job) + running if job in waiting else 0
            shown = ("id", "kind", "state", "stage", "fraction", "error")
            values = {key: getattr(job, key) for key in shown}
            return {**values, "ahead": ahead, "notes": list(job.notes), "result": dict(job.result)}

    def close(self) -> None:
        """Cancel all jobs and end the thread."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "waiting"]

    def _work(self) -> None:
        while (job := self._next()) is not None:
            with _outcome(job), _warnings(job):
                self._act(job)
            if job.state != "done":
                self._forget(job.id)
            self._forget_oldest()

    def _next(self) -> Job | None:
        """Wait for a job and mark it as running; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting())
            if self._closed:
                return None
            job = self._waiting()[0]
            job.state = "running"
            return job

    def _forget_oldest(self) -> None:
        with self._changed:
            finished = [job.id for job in self._jobs.values() if job.state in FINISHED]
            for name in finished[: -self._most_results]:
                del self._jobs[name]
                self._forget(name)


@contextmanager
def _outcome(job: Job) -> Iterator[None]:
    """Set the job's state at the end of the block; no exception leaves it."""
    try:
        yield
        job.state = "done"
    except Cancelled:
        job.state = "cancelled"
    except UserError as error:
        job.error, job.state = str(error), "failed"
    except Exception as error:
        logger.exception("the job %s failed", job.kind)
        job.error = f"The program failed ({type(error).__name__}): {first_line(error)}"
        job.state = "failed"


@contextmanager
def _warnings(job: Job) -> Iterator[None]:
    """Show the warnings of the pipeline on the page, too."""

    class ToPage(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            job.note(record.getMessage())

    handler, source = ToPage(logging.WARNING), logging.getLogger(WARNINGS_OF)
    # That one names a word only the first time; `Actions` names unknown words each time.
    handler.addFilter(lambda record: not record.name.endswith(".unknown_words"))
    source.addHandler(handler)
    try:
        yield
    finally:
        source.removeHandler(handler)
