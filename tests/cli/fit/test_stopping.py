"""Jobs of several processes: signals stop all ranks at one step, and a rank that fails ends the job with its reason."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.fabric.plugins.environments import LightningEnvironment

from divot_lightning.checkpoint.folders import checkpoint_step, newest_checkpoint
from divot_lightning.distributed.failures import RankFailed
from divot_lightning.distributed.launcher import WatchedLauncher, watched
from divot_lightning.distributed.rank_sync import RankDesyncError
from divot_lightning.errors import UserError
from tests.helpers.faults import Fault
from tests.helpers.jobs import Job

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
    search_path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
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
    assert "continue with: divot resume" in job.output

    with _job(folder, torchrun=2) as job:
        (folder / RUN / "metrics.csv").unlink()
        job.wait_for(folder / RUN / "metrics.csv")
        job.send(signal.SIGTERM)  # ranks, loaders and torchrun, which sends it to the ranks once more
        assert job.wait() != 0
    assert f"continuing after step {first['step']}" in job.output
    assert "stopped by SIGTERM" in job.output
    assert _stopped(folder)["step"] > first["step"]


@pytest.mark.parametrize(
    ("fault", "torchrun", "reason", "status"),
    [
        (Fault("user_error", step=2, rank=1), None, "rank 1: this fault was requested at step 2", 2),
        (Fault("kill", step=2, rank=1), None, "rank 1 was ended by SIGKILL", 1),
        (Fault("crash", step=2, rank=0), 2, "RuntimeError: this fault was requested at step 2", 1),
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


@pytest.fixture
def importing(folder: Path) -> Iterator[Job]:
    """A job of two processes whose second one has only just been started: it is still importing."""
    with _job(folder, "runs/importing", forked="first") as job:
        deadline = time.monotonic() + 120
        while 1 not in job.ranks() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert job.process.poll() is None, job.output
        yield job


def test_a_rank_that_is_importing_ends_with_the_first_process(importing: Job) -> None:
    importing.send(signal.SIGKILL, rank=0)
    importing.process.wait()
    deadline = time.monotonic() + 10.0  # what is promised
    while importing.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert importing.processes() == {}


def test_a_signal_to_one_rank_that_is_importing_ends_the_job_naming_it(importing: Job) -> None:
    importing.send(signal.SIGTERM, rank=1)
    assert importing.wait() == 1, importing.output
    assert "rank 1 was ended by SIGTERM" in importing.output.splitlines()[-1]


@pytest.mark.parametrize("error", [RankDesyncError("rank 0 waited 0 s: rank 1 did not come"), RuntimeError("closed")])
def test_a_rank_that_was_killed_is_the_reason_however_the_first_one_notices(error: Exception) -> None:
    launcher = WatchedLauncher(LightningEnvironment(), 2, 1)
    launcher.notes = tempfile.TemporaryDirectory()
    launcher.procs = [subprocess.Popen(["sleep", "60"])]
    launcher.procs[0].kill()
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    with pytest.raises(RankFailed, match="rank 1 was ended by SIGKILL") as caught, watched(trainer):
        raise error
    assert caught.value.exit_code == 1


def test_what_a_user_can_fix_in_the_first_process_is_told_though_others_were_ended() -> None:
    launcher = WatchedLauncher(LightningEnvironment(), 2, 1)
    launcher.notes = tempfile.TemporaryDirectory()
    launcher.procs = [subprocess.Popen(["sleep", "60"])]
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    with pytest.raises(UserError, match="width is 3"), watched(trainer):
        raise UserError("width is 3")
    assert launcher.procs[0].wait() == -signal.SIGKILL
