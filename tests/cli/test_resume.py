"""`divot resume`: goes on where a run was stopped."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from divot_lightning.cli.run_folder import newest_checkpoint

Divot = Callable[..., int]
Settings = dict[str, Any]
RUN = Path("runs/tiny")


def _losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file)}


def _interrupted(divot: Divot, tiny: Settings, at: int) -> None:
    assert divot("fit", tiny, "--data.interrupt_at", str(at)) == 130


def test_ctrl_c_saves_where_it_stopped_and_says_how_to_go_on(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(divot, tiny, at=5)
    assert newest_checkpoint(RUN) is not None
    assert not (RUN / "finished.json").exists()
    assert f"divot resume {RUN}" in capsys.readouterr().err


def test_a_resumed_run_ends_as_one_that_never_stopped(divot: Divot, tiny: Settings) -> None:
    _interrupted(divot, tiny, at=5)
    assert divot("resume", str(RUN), "--data.interrupt_at", "null") == 0
    assert divot("fit", tiny, "--run", "straight") == 0
    assert _losses(RUN) == _losses(Path("straight"))
    both = [torch.load(newest_checkpoint(run), weights_only=False) for run in (RUN, Path("straight"))]
    assert both[0]["global_step"] == both[1]["global_step"] == 6
    for name, value in both[0]["state_dict"].items():
        torch.testing.assert_close(value, both[1]["state_dict"][name], rtol=0, atol=0)


def test_a_run_killed_before_its_first_checkpoint_starts_again(divot: Divot, tiny: Settings) -> None:
    _interrupted(divot, tiny, at=5)
    shutil.rmtree(RUN / "checkpoints")
    assert divot("resume", str(RUN), "--data.interrupt_at", "null") == 0
    assert list(_losses(RUN)) == ["1", "3", "5"]


def test_a_checkpoint_cut_off_by_a_kill_is_passed_over(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    whole = newest_checkpoint(RUN)
    assert whole is not None
    (RUN / "checkpoints/step_00000009.ckpt").write_bytes(whole.read_bytes()[:-100])
    assert newest_checkpoint(RUN) == whole


def test_a_finished_run_says_so_and_stays_as_it_is(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert divot("resume", str(RUN)) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_a_finished_run_can_be_trained_for_longer(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    assert divot("resume", str(RUN), "--trainer.max_steps", "10") == 0
    assert list(_losses(RUN)) == ["1", "3", "5", "7", "9"]
    assert [path.name for path in (RUN / "checkpoints").glob("step_*")] == ["step_00000010.ckpt"]
    assert (RUN / "finished.json").is_file()


def test_a_run_killed_while_it_wrote_its_components_writes_them(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    (RUN / "finished.json").unlink()
    shutil.rmtree(RUN / "layer")
    assert divot("resume", str(RUN)) == 0
    assert (RUN / "finished.json").is_file()
    assert (RUN / "layer/model.safetensors").is_file()
    assert list(_losses(RUN)) == ["1", "3", "5"]


def test_a_moved_run_goes_on_where_it_is_now(divot: Divot, tiny: Settings) -> None:
    _interrupted(divot, tiny, at=5)
    shutil.move(RUN, "elsewhere")
    assert divot("resume", "elsewhere", "--data.interrupt_at", "null") == 0
    assert Path("elsewhere/finished.json").is_file()
    assert not RUN.exists()


@pytest.mark.parametrize("command", ["resume", "validate", "test"])
def test_a_folder_without_a_run_is_refused(
    divot: Divot, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot(command, str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    assert divot(command, str(tmp_path)) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert divot(command) == 2
    assert f"divot {command} RUN" in capsys.readouterr().err
