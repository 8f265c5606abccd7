"""The speed of a run, by a clock that the test sets: rates, waiting, validations, operations."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from divot_lightning.parts.sequences.rows import collate_sequences
from divot_lightning.parts.sequences.tokens import TokenSequence
from divot_lightning.training.reporting import speed
from divot_lightning.training.reporting.run_callbacks import StepProgress
from divot_lightning.training.reporting.speed import DataWait, TrainingSpeed, batch_work

WAIT, STEP, VALIDATION = 3.0, 5.0, 100.0
"""Seconds of the clock for one batch to come, for a step and for a validation."""


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowBatches:
    """Clips that take `WAIT` seconds to come."""

    def __init__(self, clock: Clock, size: int, number: int) -> None:
        self.clock, self.size, self.number = clock, size, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.clock.now += WAIT
        return {"video": torch.ones(self.size, 8), "key": ["a"] * self.size, "counted": self.size}


class TwoLayers(LightningModule):
    """The first layer may be frozen; `STEP` seconds a step."""

    def __init__(self, clock: Clock, frozen: bool = False) -> None:
        super().__init__()
        self.clock = clock
        self.layers = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
        self.layers[0].requires_grad_(not frozen)
        self.shown: list[dict[str, float]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.clock.now += STEP
        return self.layers(batch["video"]).square().mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.clock.now += VALIDATION

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([value for value in self.parameters() if value.requires_grad], lr=0.1)


class Kept(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append({name: value for name, value in metrics.items() if name.startswith("speed/")})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def _rows(clock: Clock, module: LightningModule, **settings: Any) -> list[dict[str, float]]:
    logger = Kept()
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": 4,
            "log_every_n_steps": 2,
            "callbacks": [TrainingSpeed()],
            "profiler": DataWait(),
            "logger": logger,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )
    batches = DataLoader(SlowBatches(clock, 6, 64), batch_size=None)
    trainer.fit(module, batches, DataLoader([0]) if settings.get("limit_val_batches") else None)
    return [row for row in logger.rows if row]


def test_rates_count_the_whole_time_of_steps_and_waiting(clock: Clock) -> None:
    rows = _rows(clock, TwoLayers(clock))
    assert len(rows) == 2
    for row in rows:
        assert row["speed/clips_per_second"] == pytest.approx(6 / (STEP + WAIT))
        assert row["speed/samples_per_second"] == pytest.approx(6 / (STEP + WAIT))
        assert row["speed/data_wait"] == pytest.approx(WAIT / (STEP + WAIT))
        assert row["speed/peak_memory_gib"] > 0.05
        assert "speed/share_of_peak" not in row, "nobody knows the peak of this processor"


def test_the_bar_has_rate_waiting_memory_and_share_of_the_peak(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(speed, "_peak_operations", lambda trainer: 1000)
    monkeypatch.setattr(Tqdm, "set_postfix", lambda bar, metrics, **more: shown.append(dict(metrics)))
    bar = StepProgress("toy")
    bar.refresh_seconds = 0.0
    _rows(clock, TwoLayers(clock), enable_progress_bar=True, callbacks=[TrainingSpeed(), bar])
    assert shown[-1].keys() == {"clips/s", "of peak", "data wait", "GiB"}
    assert shown[-1]["clips/s"] == pytest.approx(6 / (STEP + WAIT), rel=1e-2)


def test_accumulated_batches_count_all(clock: Clock) -> None:
    rows = _rows(clock, TwoLayers(clock), accumulate_grad_batches=3)
    assert [row["speed/clips_per_second"] for row in rows] == [pytest.approx(6 / (STEP + WAIT))] * 2


def test_validations_are_left_out(clock: Clock) -> None:
    rows = _rows(clock, TwoLayers(clock), limit_val_batches=1, val_check_interval=1, max_steps=6)
    assert [row["speed/clips_per_second"] for row in rows] == [pytest.approx(6 / (STEP + WAIT))] * 3


def test_a_profiler_of_the_user_leaves_waiting_out(clock: Clock) -> None:
    rows = _rows(clock, TwoLayers(clock), profiler=None)
    assert "speed/data_wait" not in rows[0]
    assert rows[0]["speed/clips_per_second"] == pytest.approx(6 / (STEP + WAIT))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_share_of_the_peak_counts_products_that_are_computed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, frozen: bool, accumulated: int
) -> None:
    monkeypatch.setattr(speed, "_peak_operations", lambda trainer: 1000)
    rows = _rows(clock, TwoLayers(clock, frozen), accumulate_grad_batches=accumulated)
    first, second = 2 * 6 * 8 * 16, 2 * 6 * 16 * 4  # a product of (n, k) and (k, m) is 2 n k m operations
    # forward; gradients of the weights that are trained; the gradient of the first layer's output if that is trained
    operations = first + second + second + (0 if frozen else first + second)
    for row in rows:
        assert row["speed/share_of_peak"] == pytest.approx(operations / (STEP + WAIT) / 1000)


def test_a_failing_step_ends_the_counting(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(TwoLayers):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            raise RuntimeError("on purpose")

    monkeypatch.setattr(speed, "_peak_operations", lambda trainer: 1000)
    with pytest.raises(RuntimeError, match="on purpose"):
        _rows(clock, Failing(clock))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_work_is_counted_without_padding_and_without_dummy_batches() -> None:
    sequences = [
        TokenSequence(ids=[5] * length, labels=[-100] * length, token_kinds=[1] * length, clips=[-1] * length)
        for length in (3, 7)
    ]
    batch = {"sequences": collate_sequences(sequences, 0), "features": torch.zeros(4, 2, 3), "key": ["a", "b"]}
    assert batch_work(batch) == {"tokens": 10, "clips": 4, "samples": 2}
    assert batch_work({"latents": torch.zeros(3, 4), "key": ["a", "b", "c"]}) == {"tokens": 0, "clips": 3, "samples": 3}
    assert set(batch_work({**batch, "counted": 0}).values()) == {0}
    assert set(batch_work(torch.ones(3)).values()) == {0}
