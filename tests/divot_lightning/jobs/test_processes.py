"""Children follow the settings they are given and can always be stopped."""

import signal
import sys
import time

import pytest

from divot_lightning.jobs.processes import resident_mib, start_process, stop_processes


@pytest.fixture
def ignored_interrupt():
    """A parent that ignores SIGINT, as jobs in the background of a script do."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, former)


def wait_for(path, text):
    deadline = time.monotonic() + 10
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
