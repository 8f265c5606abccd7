"""A run that is killed at any moment around a checkpoint ends, resumed, as one that was never stopped."""

import csv
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from divot_lightning.checkpoint.folders import complete_checkpoints, newest_checkpoint
from divot_lightning.training.reporting.run_logging import CsvMetrics
from tests.helpers.faults import VARIABLE, Fault, limited_file_size
from tests.helpers.faults import main as faults_main

Divot = Callable[..., int]
Settings = dict[str, Any]
RUN = Path("runs/tiny")
STRAIGHT = Path("straight")
VALIDATED = {
    "max_steps": 8,
    "val_check_interval": 4,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps the run that nothing stopped, once a test has trained it."""
    return tmp_path_factory.mktemp("trained_once")


@pytest.fixture
def validated(divot: Divot, tiny: Settings, trained_once: Path) -> Settings:
    """A recipe that validates and saves after steps 4 and 8; `straight` is its run that nothing stopped."""
    tiny["trainer"].update(VALIDATED)
    tiny["checkpoint"] = {"every_steps": 4, "keep_best": 1}
    if not (trained_once / STRAIGHT).exists():
        assert divot("fit", tiny, "--run", str(STRAIGHT)) == 0
        shutil.copytree(STRAIGHT, trained_once / STRAIGHT)
    else:
        shutil.copytree(trained_once / STRAIGHT, STRAIGHT)
    return tiny


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A process that stopped ignores further signals up to its end; this one has other tests to run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _with_fault(fault: Fault, *words: str) -> int:
    """Run `divot` with a fault in a fork of this process; return its exit status, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = json.dumps(asdict(fault))
        os._exit(faults_main(list(words)))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("a faulty run does not end")


def _rows(run: Path) -> list[dict[str, str]]:
    """The rows without speed and memory, which differ between two runs that do the same."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith("speed/")}
            for row in csv.DictReader(file)
        ]


def _assert_like_straight() -> None:
    assert _rows(RUN) == _rows(STRAIGHT)
    newest, expected = newest_checkpoint(RUN), newest_checkpoint(STRAIGHT)
    assert newest is not None
    assert expected is not None
    assert [path.name for path in complete_checkpoints(RUN)] == [path.name for path in complete_checkpoints(STRAIGHT)]
    assert (RUN / "checkpoints/scores.json").read_text() == (STRAIGHT / "checkpoints/scores.json").read_text()
    for file in expected.glob("*.safetensors"):
        for name, value in load_file(file).items():
            assert torch.equal(load_file(newest / file.name)[name], value), name


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("moment", ["step", "logged", "save", "validation", "next"])
def test_each_row_is_there_once_after_a_kill(divot: Divot, validated: Settings, moment: Any, step: int) -> None:
    if (moment, step) == ("next", 8):
        step = 7  # no step begins after the last one
    Path("recipe.yaml").write_text(yaml.safe_dump(validated))
    assert _with_fault(Fault("kill", step=step, moment=moment), "fit", "--config", "recipe.yaml") == -signal.SIGKILL
    assert not (RUN / "finished.json").exists()
    assert divot("resume", str(RUN), validated) == 0
    _assert_like_straight()


@pytest.mark.parametrize("step", [4, 8])
def test_each_row_is_there_once_after_a_signal_at_the_step_of_a_validation(
    divot: Divot, validated: Settings, step: int
) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(validated))
    assert _with_fault(Fault("SIGTERM", step=step), "fit", "--config", "recipe.yaml") == 75
    assert newest_checkpoint(RUN) == RUN / f"checkpoints/step_{step:08d}"
    assert len(_rows(RUN)) == len(_rows(STRAIGHT)) * step // 8 - 1, "the validation was not left out"
    assert divot("resume", str(RUN), validated) == 0
    _assert_like_straight()


@pytest.mark.parametrize("every_steps", [4, 3])
def test_a_run_trained_for_longer_continues_with_the_rows_of_its_last_validation(
    divot: Divot, validated: Settings, every_steps: int
) -> None:
    validated["checkpoint"] = {"every_steps": every_steps}
    assert divot("fit", validated) == 0
    assert divot("resume", str(RUN), "--trainer.max_steps", "12") == 0
    steps = [(row["step"], bool(row["validation/loss"])) for row in _rows(RUN)]
    validations = {3, 7, 11}
    assert steps == [
        (str(step), validates) for step in range(12) for validates in [False, True][: 1 + (step in validations)]
    ]


def test_a_kill_while_a_validation_is_made_up_for_costs_nothing(divot: Divot, validated: Settings) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(validated))
    fault = Fault("kill", step=4, moment="validation")
    assert _with_fault(fault, "fit", "--config", "recipe.yaml") == -signal.SIGKILL
    assert _with_fault(fault, "resume", str(RUN)) == -signal.SIGKILL
    assert divot("resume", str(RUN)) == 0
    _assert_like_straight()


def test_a_validation_at_the_end_of_an_epoch_is_made_up_for(divot: Divot, tiny: Settings) -> None:
    tiny["trainer"].update(
        {**VALIDATED, "val_check_interval": 1.0, "check_val_every_n_epoch": 1, "limit_train_batches": 4}
    )
    tiny["checkpoint"] = {"every_steps": 4, "keep_best": 1}
    assert divot("fit", tiny, "--run", str(STRAIGHT)) == 0
    Path("recipe.yaml").write_text(yaml.safe_dump(tiny))
    fault = Fault("kill", step=4, moment="validation")
    assert _with_fault(fault, "fit", "--config", "recipe.yaml") == -signal.SIGKILL
    assert divot("resume", str(RUN)) == 0
    _assert_like_straight()


def test_rows_that_the_file_could_not_take_are_in_the_checkpoint(tmp_path: Path) -> None:
    metrics = CsvMetrics(tmp_path)
    metrics.log_metrics({"loss": 1.0}, 0)
    size = metrics.path.stat().st_size
    with limited_file_size(size + 2):
        metrics.log_metrics({"loss": 2.0}, 1)  # a part of the row is written
        metrics.log_metrics({"loss": 3.0}, 2)
        position = metrics.position()
    assert position["rows"] == 3
    again = CsvMetrics(tmp_path)
    again.resume(3, position)
    assert [(row["step"], row["loss"]) for row in _rows(tmp_path)] == [("0", "1"), ("1", "2"), ("2", "3")]
    again.log_metrics({"loss": 4.0}, 3)
    once_more = CsvMetrics(tmp_path)
    once_more.resume(3, position)
    assert [row["step"] for row in _rows(tmp_path)] == ["0", "1", "2"], "the row behind the checkpoint is dropped"
