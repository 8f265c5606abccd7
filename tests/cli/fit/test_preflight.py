"""`divot preflight`: what it says, against a run of the same recipe."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.checkpoint.folders import newest_checkpoint
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig
from divot_lightning.errors import UserError
from divot_lightning.preflight import report as preflight_report
from divot_lightning.preflight.memory import ProcessLayout
from divot_lightning.testing.toy_shards import make_toy_shards
from divot_lightning.training.recipe_files import recipes_dir

Divot = Callable[..., int]
RECIPE = ("--config", "toy/tokenizer_pretraining", "--data.batch_size", "4", "--trainer.max_steps", "1")


def _mib(text: str, name: str) -> float:
    found = re.search(rf"^ *{name} +([\d.]+) MiB", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def test_it_predicts_the_checkpoint_and_leaves_nothing_behind(
    divot: Divot, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_toy_shards(Path("data/toy"))
    before = sorted(Path().rglob("*"))
    assert divot("preflight", *RECIPE) == 0
    told = capsys.readouterr().out
    assert [path for path in sorted(Path().rglob("*")) if path not in before] == []
    assert "batch          4 samples\n" in told
    assert re.search(r"^train +\d+ samples in \d+ shards: data/toy/train$", told, re.MULTILINE)
    assert divot("fit", *RECIPE, "--run", "measured", "--trainer.limit_val_batches", "0") == 0
    checkpoint = newest_checkpoint(Path("measured"))
    assert checkpoint is not None
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert _mib(told, "checkpoint") == pytest.approx(size / 2**20, rel=0.15)
    assert _mib(told, "weights") < _mib(told, "checkpoint")


def test_every_source_is_priced_and_shared_memory_is_that_of_the_own_share(
    divot: Divot, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_toy_shards(Path("data/toy"))
    sources = [
        {"path": "data/toy/train", "weight": 3.0, "batch_size": 8},
        {"path": "data/toy/validation", "weight": 1.0, "batch_size": 32},
    ]
    recipe = yaml.safe_load((recipes_dir() / "toy/tokenizer_pretraining.yaml").read_text())
    recipe["data"]["init_args"] |= {"train": sources, "validation": None, "num_workers": 1}
    recipe["trainer"] |= {"devices": 4, "max_steps": 100, "strategy": "divot_zero2", "precision": "bf16-mixed"}
    assert divot("preflight", recipe) == 0
    told = capsys.readouterr().out
    assert "batch          8 samples = 2 on each process, 75% of the steps: data/toy/train\n" in told
    assert "batch          32 samples = 8 on each process, 25% of the steps: data/toy/validation\n" in told
    assert "steps          100 of 14 samples on average" in told
    assert re.search(r"activations +[\d.]+ MiB for the heaviest batch, of data/toy/validation\n", told)
    # 8 of its own, 16 of them asked for ahead, twice; no place is smaller than 4 MiB
    assert "shared memory  192.0 MiB of each process with its decoding workers at most, 768.0 MiB of a node" in told


def test_processes_that_cannot_share_a_batch_are_refused(
    divot: Divot, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_toy_shards(Path("data/toy"))
    words = ("--trainer.devices", "3", "--trainer.num_nodes", "2", "--trainer.strategy", "divot_zero2")
    assert divot("preflight", *RECIPE, *words) == 2
    assert "batch_size is 4, which 6 processes cannot share evenly" in capsys.readouterr().err


def test_a_disk_without_room_is_told_and_shown_by_the_status(
    divot: Divot, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_report, "free_bytes", lambda folder: 10)
    assert divot("preflight", tiny) == 1
    told = capsys.readouterr().out
    assert "NOT ENOUGH" in told
    assert "TinyData does not tell its sizes" in told
    assert "activations  not known (no batch to go by)" in told
    assert re.search(r"together     not known: [\d.]+ MiB and the activations", told)


def test_checkpoints_that_are_kept_for_ever_need_room_too() -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 2),
        ({"keep_last": 2, "keep_best": 3}, 6),
        ({"keep_every": 20}, 2 + 5),
        ({"keep_every": 5}, 2 + 10),  # only every tenth step is saved
        ({"keep_all": True}, 10 + 1),
    ]
    for settings, most in cases:
        config = CheckpointConfig(every_steps=10, **settings)
        assert preflight_report.most_checkpoints(config, 100) == most, settings
    assert preflight_report.most_checkpoints(CheckpointConfig(keep_every=5), -1) == 2


def test_settings_of_the_trainer_decide_the_layout() -> None:
    class Settings:
        devices, num_nodes, strategy, precision, accelerator = 4, 2, "divot_zero3_offload", "bf16-true", "cuda"

    known = {"precision": "bf16-true", "device": "cuda"}
    expected = ProcessLayout(8, zero_stage=3, offload_optimizer=True, offload_parameters=True, per_node=4, **known)
    assert preflight_report.read_layout(Settings) == expected
    Settings.strategy, Settings.devices, Settings.num_nodes = "ddp", [0, 2], 1
    assert preflight_report.read_layout(Settings) == ProcessLayout(2, per_node=2, **known)
    Settings.strategy = "teleport"
    with pytest.raises(UserError, match="strategy is 'teleport'; choose auto, ddp or one of: divot_zero1"):
        preflight_report.read_layout(Settings)
    Settings.strategy, Settings.devices = "auto", "0,1,"
    assert preflight_report.read_layout(Settings).world_size == 2
    for devices, nodes, told in (
        ("x", 1, "devices is 'x'; give a number"),
        (0, 1, "devices is 0"),
        (1, 0, "nodes is 0"),
    ):
        Settings.devices, Settings.num_nodes = devices, nodes
        with pytest.raises(UserError, match=told):
            preflight_report.read_layout(Settings)


def test_without_a_recipe_it_says_how_it_is_used(divot: Divot, capsys: pytest.CaptureFixture[str]) -> None:
    assert divot("preflight") == 2
    assert "divot preflight --config RECIPE" in capsys.readouterr().err
