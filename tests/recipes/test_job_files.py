"""The job files for several nodes, as shipped, with two nodes on the loopback device and SLURM's part played."""

import csv
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.checkpoint.folders import checkpoint_step, newest_checkpoint
from divot_lightning.training.recipe_files import recipes_dir
from tests.helpers.jobs import CHECKOUT, Job

RUN = Path("runs/tiny")
JOBS = recipes_dir() / "jobs"
TINY = Path(__file__).parents[1] / "cli"
PATIENCE = 300.0

# As srun does: a task per node here, all ended when one fails, and the greatest status exported. The tasks are forks,
# so that what takes long is imported once.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys, time
from divot_lightning.io.quick_imports import quick_imports
with quick_imports():
    import divot_lightning.training.runs
    from divot_lightning.deepspeed_zero.deepspeed_setup import require_deepspeed
    require_deepspeed()
    import deepspeed.runtime.engine
from tests.helpers.forks import forked_processes
assert sys.argv[1] == "--kill-on-bad-exit=1"
with forked_processes():
    tasks = [
        subprocess.Popen(sys.argv[2:], env={{**os.environ, "SLURM_PROCID": n, "SLURM_NODEID": n, "SLURM_LOCALID": "0"}})
        for n in map(str, range(int(os.environ["SLURM_NTASKS"])))
    ]
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        [task.terminate() for task in tasks]
    time.sleep(0.05)
sys.exit(max(128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks))
"""
FORKS = "from tests.helpers.forks import forked_processes; forked_processes().__enter__()"
"""Runs when a process of Python starts that finds it as `sitecustomize.py`: the ranks of torchrun are forks of it."""
SCONTROL = '#!/bin/bash\necho "$@" >> scontrol.txt\n'


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A working directory with a recipe; gives the variables that both launchers need."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    recipe = {
        "trainer": {"max_steps": 100_000, "accelerator": "cpu", "strategy": "divot_zero2", "log_every_n_steps": 1},
        "checkpoint": {"every_steps": 100_000},
        "model": {"class_path": "tiny_stage.TinyStage", "init_args": {"optimizer": {"lr": 0.01}}},
        "data": {"class_path": "tiny_stage.TinyData", "init_args": {"train": "here", "clips": {"size": 4}}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    search_path = os.pathsep.join(map(str, (TINY, CHECKOUT)))
    return {"PYTHON": sys.executable, "PYTHONPATH": search_path, "GLOO_SOCKET_IFNAME": "lo"}


def _job(file: str, environment: Mapping[str, str], **changes: Any) -> Job:
    words = [word for key, value in changes.items() for word in (f"--trainer.{key}", str(value))]
    command = ["bash", str(JOBS / file), str(RUN), "--config", "recipe.yaml", *words]
    return Job(command, environment=environment)


def _slurm(environment: Mapping[str, str]) -> dict[str, str]:
    sizes = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    names = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "divot", "SLURM_NODELIST": "127.0.0.1"}
    path = os.pathsep.join([str(Path("bin").resolve()), os.environ["PATH"]])
    return {**environment, **sizes, **names, "MASTER_PORT": _port(), "PATH": path}


def _torchrun(environment: Mapping[str, str], node: int, port: str) -> dict[str, str]:
    nodes = {"NODES": "2", "NODE": str(node), "PER_NODE": "1"}
    Path("sitecustomize.py").write_text(FORKS)
    search_path = os.pathsep.join([str(Path.cwd()), environment["PYTHONPATH"]])
    return {**environment, **nodes, "FIRST_NODE": "127.0.0.1", "PORT": port, "PYTHONPATH": search_path}


def test_a_run_on_two_nodes_is_queued_again_by_slurm_and_continues_under_torchrun(environment: dict[str, str]) -> None:
    with _job("slurm.sh", _slurm(environment)) as job:
        job.wait_for(RUN / "metrics.csv", PATIENCE)
        job.send(signal.SIGUSR1, rank=1)
        assert job.wait(PATIENCE) == 0, job.output
    assert Path("scontrol.txt").read_text() == "requeue 4711\n"
    stopped = json.loads((RUN / "stopped.json").read_text())
    assert (stopped["signal"], stopped["exit_code"]) == ("SIGUSR1", 75)
    newest = newest_checkpoint(RUN)
    assert newest is not None
    assert checkpoint_step(newest) == stopped["step"] > 0

    port, last = _port(), stopped["step"] + 5
    first = _job("torchrun.sh", _torchrun(environment, 0, port), max_steps=last)
    other = _job("torchrun.sh", _torchrun(environment, 1, port), max_steps=last)
    with first, other:
        assert first.wait(PATIENCE) == 0, first.output
        assert other.wait(PATIENCE) == 0, other.output
    assert f"continuing after step {stopped['step']}" in first.output
    assert (RUN / "finished.json").is_file()
    with (RUN / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(last))


def test_a_run_that_fails_is_not_queued_again(environment: dict[str, str]) -> None:
    RUN.mkdir(parents=True)
    (RUN / "stopped.json").write_text('{"exit_code": 75}')
    (Path("bin") / "srun").write_text("#!/bin/bash\nexit 2\n")
    with _job("slurm.sh", _slurm(environment)) as job:
        assert job.wait(PATIENCE) == 2, job.output
    assert not Path("scontrol.txt").exists()
