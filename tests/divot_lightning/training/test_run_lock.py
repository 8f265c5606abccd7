"""One process per run folder."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.training.run_lock import run_lock

_HOLDER = """
import os, sys, time
from pathlib import Path
from divot_lightning.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker that outlives the process must not keep the lock
        print("locked", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_refused_until_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs/one"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(run)], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        who = re.escape(f"process {holder.pid} on {socket.gethostname()}, since 20")
        with pytest.raises(UserError, match=who), run_lock(run):
            pass
        (run / "config.yaml").write_text("")
        assert main(["resume", str(run)]) == 2
        assert f"{run} is in use by process {holder.pid}" in capsys.readouterr().err
        holder.kill()
        holder.wait()
        with run_lock(run):  # its worker still lives, its file is still there
            assert (run / "run.lock").is_file()
        os.killpg(holder.pid, 9)


def test_a_lock_leaves_nothing_behind_where_nothing_was_written(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a/b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "a/b"):
        (tmp_path / "a/b/config.yaml").write_text("")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["config.yaml"]


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run is a file"), run_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("work", ["data/index/0a1b.npz", "defects/defects-train-rank0.jsonl"])
def test_a_refused_run_leaves_its_folder_only_if_work_is_in_it(tmp_path: Path, work: str) -> None:
    def refused(*files: str) -> list[Path]:
        with run_lock(tmp_path / "a/b"):
            (tmp_path / "a/b/data/index").mkdir(parents=True)
            for name in ("data/index/content.json", *files):
                (tmp_path / "a/b" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "a/b" / name).write_text("{}")
        return list(tmp_path.iterdir())

    assert refused() == []
    assert refused(work) == [tmp_path / "a"]
    assert (tmp_path / "a/b" / work).is_file()
