"""Checkpoints of one process: exact, complete, small, whole or not there, and harmless."""

import json
import multiprocessing
import os
import pickle
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from saving_process import keep_saving, save_numbered
from tiny_run import TinyStage, step_folder, train

from divot_lightning.checkpoint.folder_reading import CheckpointReader
from divot_lightning.checkpoint.folder_writing import TRAINER, CheckpointNotWritten
from divot_lightning.checkpoint.folders import complete_checkpoints, newest_checkpoint
from divot_lightning.checkpoint.manifest import MANIFEST, FileRecord, read_manifest, write_manifest
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig
from divot_lightning.checkpoint.weight_average import WeightAverage
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError
from divot_lightning.io.files import file_sha256

EVERY = CheckpointConfig(every_steps=1, keep_all=True)


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Let no file grow over `limit` bytes: writing more fails in the operating system, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _assert_same_end(resumed: dict[str, Any], straight: dict[str, Any], after: int) -> None:
    assert resumed["losses"] == [row for row in straight["losses"] if row[0] >= after]
    last = max(straight["parameters"])
    for name, value in straight["parameters"][last].items():
        assert torch.equal(resumed["parameters"][last][name], value), name
    for one, other in zip(resumed["stage"].buffers(), straight["stage"].buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"limit_val_batches": 1, "val_check_interval": 2},
        {"limit_train_batches": 3},
        {"limit_train_batches": 3, "max_epochs": 2},
    ],
    ids=["plain", "accumulation", "validation", "epochs", "counted epochs"],
)
def test_a_run_resumed_after_any_step_is_the_run_that_never_stopped(tmp_path: Path, settings: dict[str, Any]) -> None:
    def run(steps: int, resume: Path | None = None) -> dict[str, Any]:
        averages = WeightAverage(decay=0.5)
        stage = TinyStage(dropout=0.3)
        done = train(
            tmp_path / "run", steps, resume=resume, stage=stage, settings=EVERY, callbacks=[averages], **settings
        )
        return {**done, "averages": averages.averages}

    straight = run(6)
    for step in range(1, 6):
        resumed = run(6, step_folder(tmp_path / "run", step))
        _assert_same_end(resumed, straight, step)
        assert all(map(torch.equal, resumed["averages"], straight["averages"]))


def test_two_resumes_in_a_row_end_as_one_run(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight", 7, stage=TinyStage(dropout=0.3))
    train(tmp_path / "run", 2, stage=TinyStage(dropout=0.3))
    train(tmp_path / "run", 5, stage=TinyStage(dropout=0.3), resume=step_folder(tmp_path / "run", 2))
    resumed = train(tmp_path / "run", 7, stage=TinyStage(dropout=0.3), resume=step_folder(tmp_path / "run", 5))
    _assert_same_end(resumed, straight, 5)


class Noting(Callback):
    """Keeps state in both of the ways that Lightning offers to callbacks."""

    def __init__(self) -> None:
        self.steps, self.found = 0, 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]

    def on_save_checkpoint(self, trainer: Any, stage: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["noting"] = 10 * self.steps

    def on_load_checkpoint(self, trainer: Any, stage: Any, checkpoint: dict[str, Any]) -> None:
        self.found = checkpoint["noting"]


class NotingStage(TinyStage):
    """Adds an entry of its own, as stages written for Lightning do."""

    found: Any = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"].pop("frozen.weight", None)
        checkpoint["words"] = ["red", "blue"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.found = checkpoint["words"]


def test_what_hooks_of_stage_and_callbacks_save_comes_back_to_them(tmp_path: Path) -> None:
    train(tmp_path, 3, stage=NotingStage(), callbacks=[Noting()])
    stage, noting = NotingStage(), Noting()
    train(tmp_path, 4, stage=stage, callbacks=[noting], resume=step_folder(tmp_path, 3))
    assert (noting.steps, noting.found, stage.found) == (4, 30, ["red", "blue"])


class Validations(Callback):
    """Notes the loss of each validation; may end the run before one."""

    def __init__(self, end_before: int | None = None) -> None:
        self.end_before, self.losses = end_before, {}

    def on_validation_start(self, trainer: Any, stage: Any) -> None:
        if trainer.global_step == self.end_before:
            raise RuntimeError("killed")

    def on_validation_end(self, trainer: Any, stage: Any) -> None:
        self.losses[trainer.global_step] = float(trainer.callback_metrics["validation/loss"])


def test_a_validation_that_a_kill_prevented_is_made_up_with_averaged_weights(tmp_path: Path) -> None:
    def run(end_before: int | None = None, resume: Path | None = None) -> dict[int, float]:
        seen = Validations(end_before)
        settings = {"limit_val_batches": 1, "val_check_interval": 2, "settings": EVERY}
        callbacks = [WeightAverage(decay=0.5), seen]
        train(tmp_path / "run", 4, resume=resume, stage=TinyStage(lr=0.3), callbacks=callbacks, **settings)
        return seen.losses

    straight = run()
    assert list(straight) == [2, 4]
    for step in (2, 4):
        with pytest.raises(RuntimeError, match="killed"):
            run(end_before=step)
        assert run(resume=step_folder(tmp_path / "run", step)) == {n: straight[n] for n in straight if n >= step}


def test_rates_are_the_recipes_and_the_position_in_the_schedule_is_the_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, 3, stage=TinyStage(lr=0.01))
    resumed = train(tmp_path, 5, stage=TinyStage(lr=0.5), resume=step_folder(tmp_path, 3))
    assert [row[2] for row in resumed["losses"]] == [0.5 / 1.3, 0.5 / 1.4]
    group = resumed["trainer"].optimizers[0].param_groups[0]
    assert group["lr"] == 0.5 / 1.5


def test_more_batches_per_step_are_counted_anew(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight", 6)
    train(tmp_path / "run", 3)
    settings = {"accumulate_grad_batches": 2, "batch": 3, "limit_train_batches": None}
    resumed = train(tmp_path / "run", 6, resume=step_folder(tmp_path / "run", 3), **settings)
    assert [row[0] for row in resumed["losses"]] == [3, 3, 4, 4, 5, 5]
    for name, value in straight["parameters"][6].items():
        torch.testing.assert_close(resumed["parameters"][6][name], value, rtol=1e-6, atol=1e-6)


def test_tensors_stand_under_their_names_and_frozen_ones_from_a_folder_do_not(tmp_path: Path) -> None:
    done = train(tmp_path, 2)
    folder = step_folder(tmp_path, 2)
    weights = load_file(folder / "weights-00000.safetensors")
    states = load_file(folder / "optimizer-00000.safetensors")
    trained = {"net.adapter.weight", "net.adapter.bias", "net.out.weight", "net.out.bias", "net.again.bias"}
    assert set(weights) == trained | {"net.untrained.weight", "net.untrained.bias", "net.seen"}
    assert set(states) == {f"{name}/{state}" for name in trained for state in ("step", "exp_avg", "exp_avg_sq")}
    assert torch.equal(weights["net.adapter.weight"], done["parameters"][2]["net.adapter.weight"])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["net.base"]["source"] == "models/base_0"


def test_a_checkpoint_is_little_more_than_trained_weights_and_optimizer_state(tmp_path: Path) -> None:
    done = train(tmp_path, 2, stage=TinyStage(width=60_000))  # 8 MB
    trained = [value for value in done["stage"].parameters() if value.requires_grad]
    states = [value for state in done["trainer"].optimizers[0].state.values() for value in state.values()]
    needed = sum(value.numel() * value.element_size() for value in [*trained, *states])
    size = sum(path.stat().st_size for path in step_folder(tmp_path, 2).iterdir())
    assert needed < size <= 1.05 * needed + 1_000_000


def test_another_base_model_fails_before_the_first_step_and_is_named(tmp_path: Path) -> None:
    train(tmp_path, 2)
    stage = TinyStage(base_seed=1)
    with pytest.raises(UserError, match=r"net\.base holds other frozen weights(.|\n)*models/base_1"):
        train(tmp_path, 4, stage=stage, resume=step_folder(tmp_path, 2))
    assert stage.losses == []


class _Extra(TinyStage):
    def configure_model(self) -> None:
        super().configure_model()
        self.extra = torch.nn.Linear(2, 2)


class _Wide(TinyStage):
    def configure_model(self) -> None:
        super().configure_model()
        self.net.seen = torch.zeros(5)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (TinyStage, _Extra, r"not in the checkpoint: extra\.bias, extra\.weight"),
        (_Extra, TinyStage, r"only in the checkpoint: extra\.bias, extra\.weight"),
        (TinyStage, _Wide, r"of another size: net\.seen \(2,\) instead of \(5,\)"),
    ],
)
def test_a_tensor_that_nothing_restores_is_named(
    tmp_path: Path, before: type[TinyStage], after: type[TinyStage], message: str
) -> None:
    train(tmp_path, 2, stage=before())
    with pytest.raises(UserError, match=message):
        train(tmp_path, 4, stage=after(), resume=step_folder(tmp_path, 2))


def test_states_of_another_optimizer_are_refused(tmp_path: Path) -> None:
    train(tmp_path, 2)
    with pytest.raises(UserError, match=r"AdamW states for net\.adapter\.bias, but this run trains it with SGD"):
        train(tmp_path, 4, stage=TinyStage(optimizer="sgd"), resume=step_folder(tmp_path, 2))


@pytest.mark.parametrize("name", ["weights-00000.safetensors", "optimizer-00000.safetensors", TRAINER])
def test_a_changed_byte_in_any_file_is_found_before_the_first_step(tmp_path: Path, name: str) -> None:
    train(tmp_path, 2)
    file = step_folder(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged: {name} has another content"):
        train(tmp_path, 4, resume=step_folder(tmp_path, 2))


class _Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _reseal(folder: Path) -> None:
    files = {path.name: FileRecord(path.stat().st_size, file_sha256(path)) for path in folder.iterdir()}
    files.pop(MANIFEST, None)
    write_manifest(folder, files, {"step": 2})


@pytest.mark.parametrize("name", [TRAINER, "weights-00000.safetensors", "weights-00001.safetensors", "plugin.pkl"])
def test_a_checkpoint_made_to_do_harm_runs_no_code(tmp_path: Path, name: str) -> None:
    train(tmp_path / "run", 2)
    folder, mark = step_folder(tmp_path / "run", 2), tmp_path / "harmed"
    if name == TRAINER:
        torch.save({"loops": _Harm(mark)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(_Harm(mark)))
    _reseal(folder)
    if name == "plugin.pkl":
        train(tmp_path / "run", 3, resume=folder)
    else:
        with pytest.raises(UserError, match=name):
            train(tmp_path / "run", 3, resume=folder)
    assert not mark.exists()


class _Unplain(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("x")}


def test_state_that_could_not_be_loaded_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the state of 'callbacks' cannot be kept"):
        train(tmp_path, 2, callbacks=[_Unplain()])
    assert list((tmp_path / "checkpoints").iterdir()) == []


class _FullDisk(Callback):
    """The disk is full from the end of step 3 to the end of step 5."""

    def __init__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        limit = 600 if trainer.global_step in (3, 4) else self.before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self.before[1]))

    def on_exception(self, *args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotWritten, match="could not be written into"):
        train(tmp_path, 6, settings=CheckpointConfig(every_steps=1), callbacks=[_FullDisk()])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    CheckpointReader(step_folder(tmp_path, 2), Ranks())


def test_a_full_disk_is_reported_and_the_run_continues_if_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = CheckpointConfig(every_steps=1, keep_all=True, on_full_disk="continue")
    train(tmp_path, 6, settings=settings, callbacks=[_FullDisk()])
    assert [path.name[-1] for path in reversed(complete_checkpoints(tmp_path))] == ["1", "2", "5", "6"]
    assert "step 3 continues without a checkpoint" in capsys.readouterr().err
    assert list((tmp_path / "checkpoints").glob(".*")) == []


def test_the_best_and_every_so_many_stay(tmp_path: Path) -> None:
    settings = CheckpointConfig(every_steps=2, keep_last=2, keep_every=4, keep_best=1, mode="max")
    train(tmp_path, 14, settings=settings, limit_val_batches=1, val_check_interval=2)
    scores = json.loads((tmp_path / "checkpoints/scores.json").read_text())
    best = max(scores, key=lambda step: scores[step])
    assert best == "2"
    assert {int(path.name[5:]) for path in complete_checkpoints(tmp_path)} == {2, 4, 8, 12, 14}


@pytest.mark.parametrize(("name", "value"), [("every_steps", 0), ("keep_last", 0), ("keep_every", -2)])
def test_settings_that_make_no_sense_are_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"checkpoint.{name} is {value}"):
        CheckpointConfig(**{name: value})


def test_a_metric_that_is_not_logged_is_refused_with_those_that_are(tmp_path: Path) -> None:
    settings = CheckpointConfig(keep_best=1, metric="validation/lsos")
    with pytest.raises(UserError, match=r"'validation/lsos'(.|\n)*validation/loss"):
        train(tmp_path, 4, settings=settings, limit_val_batches=1, val_check_interval=2)


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    # Imported once, and there in every process that is forked from it.
    context.set_forkserver_preload(["divot_lightning.checkpoint.folder_writing", "divot_lightning.checkpoint.folders"])
    draw = random.Random(0)
    steps = [0]
    for kills in range(300):
        if kills >= 30 and steps[-1] > 10:  # on a busy machine a process gets less far before it is killed
            break
        started = context.Event()
        process = context.Process(target=keep_saving, args=(str(tmp_path), started))
        process.start()
        assert started.wait(60)
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        process.join()
        newest = newest_checkpoint(tmp_path)
        if newest is not None:
            steps.append(_check_numbered(newest))
    assert steps == sorted(steps)
    assert steps[-1] > 10


def _check_numbered(folder: Path) -> int:
    reader = CheckpointReader(folder, Ranks())
    step = reader.state()["step"]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert folder.name == f"step_{step:08d}"
    assert manifest["step"] == step
    for group in ("weights", "optimizer"):
        for number in range(8):
            assert bool((reader.get(group, f"layer{number}") == step + number).all())
    return int(step)


def test_a_checkpoint_of_the_same_step_replaces_the_old_one(tmp_path: Path) -> None:
    save_numbered(tmp_path / "step_00000003", 2)
    save_numbered(tmp_path / "step_00000003", 3)
    assert _check_numbered(tmp_path / "step_00000003") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
