"""Steps that are not finite, under every kind of strategy: skipped by all, recorded, limited in number."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import distributed, nn
from torch.utils.data import DataLoader

from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.errors import UserError
from divot_lightning.parts.optimizers import scheduled_fraction
from divot_lightning.testing import run_distributed
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Stage
from divot_optimizers.adamw import AdamWOptimizer


class Tiny(Stage):
    """Trains one layer on batches of numbers; a batch may spoil its loss, or its gradient alone."""

    def __init__(self, **settings):
        super().__init__(AdamWOptimizer(lr=0.1, warmup_steps=4, **settings))
        self.weights, self.rates = [], []

    def build(self):
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        self.check_sync("train", batch, batch_idx)
        value = self.layer(batch["video"]).square().mean()
        spoilt = {"fine": 0.0 * value, "loss": value / 0.0, "gradient": (0.0 * value).sqrt()}[batch["kind"]]
        return self.training_loss({"loss": LossPart(value + spoilt, len(batch["video"]))}, batch)

    def loss_counts(self, batch):
        return {"loss": len(batch["video"])}

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_end(*arguments)
        self.weights.append(whole(self.layer.weight))
        self.rates.append(self.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0])


def whole(parameter):
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().flatten().tolist()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().flatten().tolist()


def fit(kinds, strategy, folder, accumulate=1, spoilt_rank=1, **settings):
    """Train on a batch per kind; in several processes only one of them has the spoilt ones."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if world > 1 else spoilt_rank
    batches = [
        {
            "video": torch.full((2, 2), 1.0 + number),
            "kind": kind if rank == spoilt_rank else "fine",
            "key": [f"key{number}of{rank}"],
        }
        for number, kind in enumerate(kinds)
    ]
    stage = Tiny(**settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_checkpointing=False,
        **quiet,
        devices=world,
        strategy=strategy,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(stage, DataLoader(batches, batch_size=None))
    return {
        "weights": stage.weights,
        "rates": stage.rates,
        "count": int(stage.nonfinite_steps),
        "steps": trainer.global_step,
    }


def check(kinds, result, record):
    """Weights stay where they are in spoilt steps and move in others; rates continue; the record names the samples."""
    weights = [None, *result["weights"]]
    for number, kind in enumerate(kinds):
        if number:
            assert (weights[number + 1] == weights[number]) == (kind != "fine"), (number, kind)
    expected = [
        0.1 * scheduled_fraction("cosine", step + 1, warmup_steps=4, total_steps=6, final_fraction=0.05)
        for step in range(6)
    ]
    assert result["rates"] == pytest.approx(expected)
    assert result["steps"] == len(kinds) == 6
    spoilt = [number for number, kind in enumerate(kinds) if kind != "fine"]
    assert result["count"] == len(spoilt)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(line["step"], line["what"]) for line in lines] == [(number, kinds[number]) for number in spoilt]
    return lines


KINDS = ["fine", "loss", "fine", "gradient", "loss", "fine"]


def test_one_process_leaves_spoilt_steps_out(tmp_path):
    lines = check(KINDS, fit(KINDS, "auto", tmp_path), tmp_path / "nonfinite.jsonl")
    assert [line["ranks"][0]["keys"] for line in lines] == [["key1of1"], ["key3of1"], ["key4of1"]]


def test_training_continues_as_if_the_skipped_steps_had_not_happened(tmp_path):
    with_spoilt = fit(["fine", "loss", "fine"], "auto", tmp_path / "a")["weights"]
    assert with_spoilt[0] == fit(["fine", "fine", "fine"], "auto", tmp_path / "b")["weights"][0]
    assert with_spoilt[1] == with_spoilt[0] != with_spoilt[2]


@pytest.mark.parametrize("place", [0, 1])
def test_of_accumulated_batches_one_spoils_the_step(tmp_path, place):
    kinds = ["fine"] * 6
    kinds[2 + place] = "loss"
    result = fit(kinds, "auto", tmp_path, accumulate=2)
    first, second, third = result["weights"][1::2]
    assert first == second != third
    assert result["count"] == 1


def test_more_than_the_budget_ends_the_run_with_a_report(tmp_path):
    kinds = ["fine", "loss", "fine", "loss", "fine", "loss"]
    with pytest.raises(UserError, match="max_nonfinite_steps=2") as caught:
        fit(kinds, "auto", tmp_path, max_nonfinite_steps=2)
    message = str(caught.value)
    assert "key5of1" in message
    assert "nonfinite.jsonl" in message
    assert len(message.splitlines()) <= 5
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 3


def fit_under_all(rank, folder):
    results = {}
    for name in ("ddp", 1, 2, 3):
        for accumulate in (1, 2):
            strategy = name if name == "ddp" else DivotDeepSpeedStrategy(stage=name, persistence_elements=0)
            kinds = KINDS if accumulate == 1 else ["fine", "fine", "loss", "fine", "fine", "loss", "fine", "fine"]
            results[name, accumulate] = fit(kinds, strategy, folder / f"{name}{accumulate}", accumulate)
    return results


def test_all_processes_leave_out_what_one_of_them_cannot_use(tmp_path):
    every = run_distributed(fit_under_all, 2, tmp_path, timeout=300)
    assert every[0] == every[1]
    for (name, accumulate), result in every[0].items():
        record = Path(tmp_path) / f"{name}{accumulate}" / "nonfinite.jsonl"
        if accumulate == 1:
            lines = check(KINDS, result, record)
            assert lines[0]["ranks"] == [{"rank": 1, "loss": "inf", "keys": ["key1of1"]}]
            assert [held["rank"] for held in lines[1]["ranks"]] == [0, 1]
        else:
            steps = result["weights"][1::2]
            assert steps[0] == steps[1] == steps[2] != steps[3], name
            assert result["count"] == 2
