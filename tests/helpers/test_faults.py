"""The tools that break things: they break what they say, and nothing else."""

import errno
import json
import multiprocessing
import signal
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from tests.helpers.faults import (
    Fault,
    damage_file,
    full_shared_memory,
    limited_file_size,
    no_loopback,
    read_only_folder,
)
from tests.helpers.jobs import Job

_FAMILY = """
import os, subprocess, sys, time
os.environ["LOCAL_RANK"] = "1"
print("started", flush=True)
# The child says so itself: in the midst of being started a process has no variables yet.
child = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child, sys.argv[1]])
time.sleep(60)
"""


def test_damage_changes_one_byte_or_cuts_the_end_off(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(10))
    damage_file(file)
    assert file.read_bytes() == bytes(5) + b"\xff" + bytes(4)
    damage_file(file, keep_bytes=3)
    assert file.read_bytes() == bytes(3)


def test_writes_beyond_the_limit_fail_as_on_a_full_disk_and_only_meanwhile(tmp_path: Path) -> None:
    with limited_file_size(100):
        (tmp_path / "short").write_bytes(bytes(100))
        with pytest.raises(OSError, match="File too large"):
            (tmp_path / "long").write_bytes(bytes(101))
    (tmp_path / "long").write_bytes(bytes(101))


def test_a_read_only_folder_can_be_read_and_not_written_and_only_meanwhile(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    (inside / "file").write_text("old")
    with read_only_folder(inside):
        assert (inside / "file").read_text() == "old"
        outside.write_text("new")
        for write in (
            lambda: (inside / "file").write_text("new"),
            lambda: (inside / "made").mkdir(),
            lambda: outside.rename(inside / "moved"),
            lambda: (inside / "file").unlink(),
        ):
            with pytest.raises(OSError, match="Read-only file system") as caught:
                write()
            assert caught.value.errno == errno.EROFS
    (inside / "file").write_text("new")


def test_shared_memory_and_loopback_are_missing_only_meanwhile() -> None:
    with full_shared_memory(), pytest.raises(OSError, match="No space left"):
        multiprocessing.Lock()
    multiprocessing.Lock()
    with socket.create_server(("127.0.0.1", 0)) as server:
        with no_loopback(), pytest.raises(OSError, match="unreachable"):
            socket.create_connection(server.getsockname())
        socket.create_connection(server.getsockname()).close()


def test_faults_raise_what_they_are_named_after_and_travel_as_json() -> None:
    fault = Fault("user_error", step=7, rank=None)
    assert Fault(**json.loads(json.dumps(asdict(fault)))) == fault
    with pytest.raises(UserError, match="at step 7"):
        fault.happen()
    with pytest.raises(RuntimeError, match="at step 3"):
        Fault("crash", step=3).happen()


def test_a_job_finds_its_ranks_and_leaves_no_process_behind(tmp_path: Path) -> None:
    with Job([sys.executable, "-c", _FAMILY, str(tmp_path / "ready")]) as job:
        job.wait_for(tmp_path / "ready")
        assert job.output == "started\n"
        ranks = job.ranks()
        assert ranks[0] == job.process.pid
        assert sorted(ranks) == [0, 1]
        job.send(signal.SIGKILL, rank=0)
        assert job.wait() == -signal.SIGKILL
        assert list(job.ranks()) == [1], "an orphan is still one of the job"
    assert job.processes() == {}
    assert job.output == "started\n"


def test_a_job_that_takes_too_long_shows_its_output() -> None:
    words = [sys.executable, "-c", "import time; print('waiting', flush=True); time.sleep(60)"]
    with Job(words) as job, pytest.raises(TimeoutError, match="waiting"):
        job.wait(timeout=1.0)
