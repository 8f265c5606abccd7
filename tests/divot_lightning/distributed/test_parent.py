"""Processes are gone within ten seconds after the one that started them, however that one ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from divot_lightning.distributed import parent
from tests.helpers.jobs import Job

GONE_SECONDS = 10.0
"""What is promised."""

STARTER = """
import sys, time
from pathlib import Path
from divot_lightning.experiments.runner.processes import start_process
start_process([sys.executable, "-c", sys.argv[1]], open("log", "wb"), threads=1)
time.sleep(600)
"""
CHILD = """
import signal, sys, time
from pathlib import Path
import divot_lightning
def stop(*_):
    Path("asked").touch()
    time.sleep({saving})
    Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
Path("ready").touch()
time.sleep(600)
"""
WORKERS = """
from pathlib import Path
from divot_lightning.testing import run_distributed
def wait(rank):
    import time
    Path(f"{folder}/rank{{rank}}").touch()
    time.sleep(600)
if __name__ == "__main__":
    run_distributed(wait, 2)
"""


def _assert_gone(job: Job, kept: int = 0) -> None:
    killed = time.monotonic()
    while len(job.processes()) > kept and time.monotonic() < killed + GONE_SECONDS:
        time.sleep(0.05)
    assert len(job.processes()) == kept, f"left after {GONE_SECONDS} s: {list(job.processes())}"


def _kill_starter(job: Job) -> None:
    job.process.kill()
    job.process.wait()


@pytest.mark.parametrize(("saving", "saved"), [(0.5, True), (600, False)])
def test_a_step_whose_job_is_killed_saves_if_that_is_quick_and_is_gone_in_any_case(
    tmp_path: Path, saving: float, saved: bool
) -> None:
    with Job([sys.executable, "-c", STARTER, CHILD.format(saving=saving)], cwd=tmp_path) as job:
        job.wait_for(tmp_path / "ready")
        _kill_starter(job)
        _assert_gone(job)
    assert (tmp_path / "asked").exists()
    assert (tmp_path / "saved").exists() == saved


def test_processes_of_a_test_that_is_killed_are_gone(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(WORKERS.format(folder=tmp_path))
    with Job([sys.executable, str(tmp_path / "workers.py")], cwd=tmp_path) as job:
        job.wait_for(tmp_path / "rank0")
        job.wait_for(tmp_path / "rank1")
        _kill_starter(job)
        _assert_gone(job)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_whose_parent_is_gone_before_it_looks_ends_at_once(number: signal.Signals) -> None:
    # process 1 started it no more than one that is gone did
    bind = f"from divot_lightning.distributed import parent; parent.bind_to_parent(1, {int(number)})"
    code = f"{bind}; import time; time.sleep(600)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -number


def test_the_name_of_a_parent_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parent.VARIABLE, f"{os.getpid()}:TERM")  # not what started this process
    parent.bind_to_named_parent()
    assert parent.VARIABLE not in os.environ
