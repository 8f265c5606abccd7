"""One job at a time, in order; few wait; any can be cancelled; what it left is deleted."""

import logging
import threading

import pytest

from divot_lightning.demo.jobs import FINISHED, JobQueue, QueueFull
from divot_lightning.errors import UserError


class Work:
    """Jobs that wait until they are let go."""

    def __init__(self):
        self.done, self.forgotten, self.go, self.begun = [], [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, job):
        self.begun.release()
        while not self.go.acquire(timeout=0.01):
            job.tell("waiting", 0.5)
        if job.kind == "wrong":
            raise UserError("no such prompt")
        if job.kind == "broken":
            raise ZeroDivisionError("secret folder\nmore")
        self.done.append(job.kind)
        job.result["value"] = 1


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def queue(work):
    queue = JobQueue(work, work.forgotten.append, waiting=2, results=2)
    yield queue
    queue.close()


def end(queue, job):
    while queue.describe(job.id)["state"] not in FINISHED:
        threading.Event().wait(0.005)
    return queue.describe(job.id)


def test_jobs_are_done_in_order_and_tell_how_many_are_before_them(queue, work):
    first = queue.submit("a", {})
    work.begun.acquire()
    second, third = queue.submit("b", {}), queue.submit("c", {})
    assert [queue.describe(job.id)["ahead"] for job in (first, second, third)] == [0, 1, 2]
    work.go.release(3)
    assert end(queue, third)["result"] == {"value": 1}
    assert work.done == ["a", "b", "c"]


def test_a_full_queue_refuses_until_a_place_is_free(queue, work):
    queue.submit("a", {})
    work.begun.acquire()
    waiting = [queue.submit("b", {}), queue.submit("c", {})]
    with pytest.raises(QueueFull, match="The queue is full: 2 jobs are waiting"):
        queue.submit("d", {})
    queue.cancel(waiting[0].id)
    assert queue.describe(waiting[0].id)["state"] == "cancelled"
    last = queue.submit("e", {})
    work.go.release(3)
    assert end(queue, last)["state"] == "done"
    assert work.done == ["a", "c", "e"]


def test_a_running_job_is_cancelled_and_the_next_one_runs(queue, work):
    first, second = queue.submit("a", {}), queue.submit("b", {})
    work.begun.acquire()
    queue.cancel(first.id)
    assert end(queue, first)["state"] == "cancelled"
    work.go.release()
    assert end(queue, second)["state"] == "done"
    assert work.forgotten[:1] == [first.id]


def test_errors_of_users_are_shown_and_others_are_logged(queue, work, caplog):
    work.go.release(2)
    wrong = end(queue, queue.submit("wrong", {}))
    assert (wrong["state"], wrong["error"]) == ("failed", "no such prompt")
    with caplog.at_level(logging.ERROR):
        broken = end(queue, queue.submit("broken", {}))
    assert broken["error"] == "The program failed (ZeroDivisionError): secret folder"
    assert "the job broken failed" in caplog.text


def test_warnings_of_the_pipeline_become_notes_once(queue, work, monkeypatch):
    def warn(job):
        for _ in range(2):
            logging.getLogger("divot_lightning.inference.ask").warning("answers may mean nothing")
            logging.getLogger("divot_lightning.training").warning("another matter")

    monkeypatch.setattr(queue, "_act", warn)
    assert end(queue, queue.submit("a", {}))["notes"] == ["answers may mean nothing"]


def test_old_results_are_deleted(queue, work):
    work.go.release(4)
    jobs = []
    for kind in "abcd":
        jobs.append(queue.submit(kind, {}))
        end(queue, jobs[-1])
    queue.close()
    assert work.forgotten == [job.id for job in jobs[:2]]
    with pytest.raises(UserError, match="not known any more"):
        queue.describe(jobs[0].id)
