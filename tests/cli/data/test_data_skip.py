"""`divot data skip`, and the order of data through `divot fit` and `divot resume`."""

import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from divot_datamodules.order.plan_edits import read_edits
from divot_lightning.cli.data.skip import parse_steps
from divot_lightning.errors import UserError
from divot_lightning.testing.toy_shards import make_toy_shards

Divot = Callable[..., int]
RUN = Path("runs/watched")
STEPS = 9


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy_shards(folder, train=14, validation=1, held_out=1)
    return folder / "train"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A process that stopped ignores further signals up to its end; this one has other tests to run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def watched(tiny: dict[str, Any], toy: Path) -> dict[str, Any]:
    """A recipe whose steps are written down."""
    return {
        "run": str(RUN),
        "trainer": {"max_steps": STEPS, "log_every_n_steps": 1, "accelerator": "cpu"},
        "checkpoint": {"every_steps": 4},
        "model": {"class_path": "watching_stage.WatchingStage", "init_args": {"notes": "notes.jsonl"}},
        "data": {
            "class_path": "divot_datamodules.video_text.VideoTextData",
            "init_args": {"train": str(toy), "batch_size": 3},
        },
    }


def _noted(path: str = "notes.jsonl") -> dict[int, list[str]]:
    """The keys of each step; a step that was taken again counts as it was taken last."""
    return dict(json.loads(line) for line in Path(path).read_text().splitlines())


def _straight(divot: Divot, watched: dict[str, Any], *words: str) -> dict[int, list[str]]:
    assert divot("fit", watched, "--run", "straight", "--model.notes", "straight.jsonl", *words) == 0
    return _noted("straight.jsonl")


@pytest.mark.parametrize("epoch", ["endless", "exact"])
def test_a_resumed_run_continues_with_the_next_sample(divot: Divot, watched: dict[str, Any], epoch: str) -> None:
    watched["data"]["init_args"]["epoch"] = epoch
    assert divot("fit", watched, "--model.stop_after", "3") == 130
    assert divot("resume", str(RUN), "--model.stop_after", "5", "--data.num_workers", "2") == 130
    assert divot("resume", str(RUN), "--model.stop_after", "null") == 0
    assert _noted() == _straight(divot, watched)


def test_a_killed_run_takes_the_steps_after_its_checkpoint_again(divot: Divot, watched: dict[str, Any]) -> None:
    assert divot("fit", watched, "--checkpoint.keep_all", "true") == 0
    for name in ("step_00000008", "step_00000009"):
        shutil.rmtree(RUN / "checkpoints" / name)
    (RUN / "finished.json").unlink()
    Path("notes.jsonl").rename("first.jsonl")
    assert divot("resume", str(RUN)) == 0
    assert {**_noted("first.jsonl"), **_noted()} == _noted("first.jsonl")
    assert list(_noted()) == [4, 5, 6, 7, 8]


def test_other_data_are_refused(
    divot: Divot, watched: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", watched, "--model.stop_after", "3") == 130
    make_toy_shards(tmp_path / "other", train=5, validation=1, held_out=1)
    assert divot("resume", str(RUN), "--data.train", str(tmp_path / "other/train")) == 2
    shown = capsys.readouterr().err
    assert "other/train: 5 samples in 3 shards; in the checkpoint" in shown
    assert "14 in 4" in shown


def test_skipped_steps_are_left_out_and_shown(
    divot: Divot, watched: dict[str, Any], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert divot("fit", watched, "--model.stop_after", "3") == 130
    assert divot("data", "skip", str(RUN), "--steps", "3:5", "--reason", "a spike") == 0
    assert "the samples of 2 steps from step 3 on are left out" in capsys.readouterr().out
    assert divot("data", "skip", str(RUN), "--steps", "4:5") == 0
    with caplog.at_level(logging.WARNING):
        assert divot("resume", str(RUN), "--model.stop_after", "null") == 0
    assert "steps 3:5 are left out since" in caplog.text
    assert "a spike" in caplog.text
    whole = _straight(divot, watched, "--trainer.max_steps", str(STEPS + 3))
    left = [keys for step, keys in whole.items() if step not in (3, 4, 6)]
    assert list(_noted().values()) == left
    first, second = read_edits(RUN / "data")
    assert (first.begin, first.end, first.steps, first.reason) == (3, 5, "3:5", "a spike")
    assert first.date.startswith("20")
    assert (second.begin, second.end) == (6, 7)


def test_a_step_of_accumulated_batches_is_skipped_whole(divot: Divot, watched: dict[str, Any]) -> None:
    watched["trainer"] |= {"max_steps": 3, "accumulate_grad_batches": 2}
    assert divot("fit", watched, "--model.stop_after", "1") == 130
    assert divot("data", "skip", str(RUN), "--steps", "1:2") == 0
    assert [(edit.begin, edit.end) for edit in read_edits(RUN / "data")] == [(2, 4)]


def test_steps_that_are_done_are_refused(
    divot: Divot, watched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", watched, "--model.stop_after", "3") == 130
    assert divot("data", "skip", str(RUN), "--steps", "2:5") == 2
    assert "step 2 is done: the newest checkpoint is" in capsys.readouterr().err
    assert read_edits(RUN / "data") == []


def test_data_without_a_plan_and_exact_epochs_are_refused(
    divot: Divot, tiny: dict[str, Any], watched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    assert divot("data", "skip", tiny["run"], "--steps", "2:5") == 2
    assert "tiny_stage.TinyData, whose order cannot be edited" in capsys.readouterr().err
    watched["data"]["init_args"]["epoch"] = "exact"
    assert divot("fit", watched, "--trainer.max_steps", "1") == 0
    assert divot("data", "skip", str(RUN), "--steps", "2:5") == 2
    assert "epochs are exact" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["5", "5:5", "6:5", "a:b", "-1:3"])
def test_steps_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--steps is '{text}'"):
        parse_steps(text)


def test_a_folder_without_a_run_is_refused(divot: Divot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert divot("data", "skip", str(tmp_path / "nowhere"), "--steps", "1:2") == 2
    assert "nowhere" in capsys.readouterr().err
