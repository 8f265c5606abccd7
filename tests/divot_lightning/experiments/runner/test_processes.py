"""Children follow the settings they are given and can always be stopped."""

import signal
import sys
import threading
import time

import pytest

from divot_lightning.experiments.runner import processes
from divot_lightning.experiments.runner.processes import (
    deal_gpus,
    resident_mib,
    start_process,
    stop_processes,
    visible_gpus,
)


@pytest.fixture
def ignored_interrupt():
    """A parent that ignores SIGINT, as jobs in the background of a script do."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, former)


def wait_for(path, text):
    deadline = time.monotonic() + 60
    while text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_child_gets_threads_and_writes_into_the_log(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        start_process(("/bin/sh", "-c", "echo threads $OMP_NUM_THREADS; echo error >&2"), log, threads=3).wait()
    assert (tmp_path / "log").read_text() == "threads 3\nerror\n"


@pytest.mark.usefixtures("ignored_interrupt")
def test_child_of_a_parent_that_ignores_interrupts_can_save_and_leave(tmp_path):
    script = "trap 'echo saved; exit 7' INT; echo ready; while true; do sleep 0.05; done"
    with (tmp_path / "log").open("wb") as log:
        child = start_process(("/bin/sh", "-c", script), log, threads=1)
        wait_for(tmp_path / "log", "ready")
        stop_processes([child], patience=5)
    assert child.returncode == 7
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"


def test_child_that_does_not_leave_is_killed(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        child = start_process(
            ("/bin/sh", "-c", "trap '' INT; echo ready; while true; do sleep 0.05; done"), log, threads=1
        )
        wait_for(tmp_path / "log", "ready")
        stop_processes([child], patience=0.2)
    assert child.returncode == -signal.SIGKILL


def test_a_second_interrupt_kills_at_once(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        child = start_process(
            ("/bin/sh", "-c", "trap '' INT; echo ready; while true; do sleep 0.05; done"), log, threads=1
        )
        wait_for(tmp_path / "log", "ready")
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer.start()
        stop_processes([child], patience=60)
        signal.signal(signal.SIGINT, former)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("named", "seen"), [("2,5", ["2", "5"]), ("", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])])
def test_gpus_are_those_that_the_environment_names(monkeypatch, named, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == seen


def test_without_a_word_of_the_environment_gpus_are_those_of_the_driver(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes, "GPU_LIST", tmp_path / "none")
    assert visible_gpus() == []
    for address in ("0000:1a:00.0", "0000:1b:00.0"):
        (tmp_path / "gpus" / address).mkdir(parents=True)
    monkeypatch.setattr(processes, "GPU_LIST", tmp_path / "gpus")
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("gpus", "jobs", "dealt"),
    [("0123", 2, ["01", "23"]), ("01234", 2, ["01", "23"]), ("01", 4, ["0", "1", "0", "1"]), ("3", 2, ["3", "3"])],
)
def test_slots_get_gpus_of_their_own_as_far_as_there_are_enough(gpus, jobs, dealt):
    assert [deal_gpus(list(gpus), jobs, [slot]) for slot in range(jobs)] == [list(share) for share in dealt]


def test_a_process_of_several_slots_gets_the_gpus_of_all_and_one_job_all_that_there_are():
    assert deal_gpus(["0", "1", "2", "3"], 4, [1, 3]) == ["1", "3"]
    assert deal_gpus(["0"], 2, [0, 1]) == ["0"]
    assert deal_gpus(["0", "1"], 1, [0]) is None
    assert deal_gpus([], 2, [0]) is None


def test_memory_of_grandchildren_counts(tmp_path):
    code = "x = bytearray(60 << 20); print('ready', flush=True); input()"
    with (tmp_path / "log").open("wb") as log:
        command = ("/bin/sh", "-c", f'sleep 20 | {sys.executable} -c "{code}"; true')
        child = start_process(command, log, threads=1)
        wait_for(tmp_path / "log", "ready")
        used = resident_mib(child.pid)
        stop_processes([child], patience=0.1)
    assert sys.platform != "linux" or used > 60


def test_gone_process_uses_no_memory():
    assert resident_mib(2**22 + 1) == 0.0
