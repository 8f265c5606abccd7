"""Jobs of several processes: signals stop all ranks at one step, and a rank that fails ends the job with its reason."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.sharding.checkpoint_folders import checkpoint_step, newest_checkpoint
from divot_lightning.testing.faults import Fault
from divot_lightning.testing.jobs import Job

RUN = "runs/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with `recipe.yaml`, a run of two processes and ten thousand short steps."""
    folder = tmp_path_factory.mktemp("stopping")
    recipe = {
        "run": RUN,
        "trainer": {"max_steps": 10_000, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 1},
        "model": {"class_path": "tiny_stage.TinyStage", "init_args": {"optimizer": {"lr": 0.01}}},
        "data": {"class_path": "tiny_stage.TinyData", "init_args": {"train": "here", "clips": {"size": 4}}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def _job(folder: Path, run: str = RUN, **settings: Any) -> Job:
    search_path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    # not --run, which torchrun takes for an abbreviation of an option of its own
    return Job.divot(
        "resume", run, "--config", "recipe.yaml", cwd=folder, environment={"PYTHONPATH": search_path}, **settings
    )


def _stopped(folder: Path) -> dict[str, Any]:
    """The record of the stop, which has to agree with the newest checkpoint."""
    record = json.loads((folder / RUN / "stopped.json").read_text())
    newest = newest_checkpoint(folder / RUN)
    assert newest is not None
    assert checkpoint_step(newest) == record["step"]
    return record


def test_signals_stop_all_ranks_at_one_step_whoever_gets_them(folder: Path) -> None:
    with _job(folder) as job:
        job.wait_for(folder / RUN / "config.yaml")
        time.sleep(0.3)
        job.send(signal.SIGUSR1, rank=1)
        job.send(signal.SIGTERM, rank=1)  # a second one, of another kind, while the first is being obeyed
        assert job.wait() == 75, job.output
    first = _stopped(folder)
    assert "go on with: divot resume" in job.output

    with _job(folder, torchrun=2) as job:
        (folder / RUN / "metrics.csv").unlink()
        job.wait_for(folder / RUN / "metrics.csv")
        job.send(signal.SIGTERM)  # ranks, loaders and torchrun, which sends it to the ranks once more
        assert job.wait() != 0
    assert f"going on after step {first['step']}" in job.output
    assert "stopped by SIGTERM" in job.output
    assert _stopped(folder)["step"] > first["step"]


@pytest.mark.parametrize(
    ("fault", "torchrun", "reason", "status"),
    [
        (Fault("user_error", step=2, rank=1), None, "rank 1: a fault was asked for at step 2", 2),
        (Fault("kill", step=2, rank=1), None, "rank 1 was ended by SIGKILL", 1),
        (Fault("crash", step=2, rank=0), 2, "RuntimeError: a fault was asked for at step 2", 1),
    ],
)
def test_a_rank_that_fails_ends_the_job_with_its_reason(
    folder: Path, fault: Fault, torchrun: int | None, reason: str, status: int
) -> None:
    with _job(folder, f"runs/{fault.action}", fault=fault, torchrun=torchrun) as job:
        job.wait_for(folder / f"runs/{fault.action}/config.yaml")
        assert job.wait(timeout=60.0) == status, job.output
        assert job.ranks() == {}, "a process is left"
        assert reason in (job.output if torchrun else "".join(job.output.splitlines()[-2:]))
