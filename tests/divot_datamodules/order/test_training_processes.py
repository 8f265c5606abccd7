"""What the processes of one training agree on, and a run of several against a run of one."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from divot_datamodules.order.training_processes import TrainingProcesses
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError
from divot_lightning.testing.run_distributed import run_distributed


def processes(count):
    return TrainingProcesses(SimpleNamespace(global_rank=0, local_rank=0, world_size=count))


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        (6, 4, r"batch_size is 6, which 4 processes cannot share.*\n.*Take 4 or 8; .*divide it: 1, 2, 3, 6\."),
        (2, 4, r"batch_size is 2, which 4 processes cannot share.*\n.*Take 4; .*divide it: 1, 2\."),
        (0, 1, "batch_size is 0"),
    ],
)
def test_sizes_that_cannot_be_shared_are_refused_with_those_that_can(size, count, message):
    with pytest.raises(UserError, match=message):
        processes(count).check_share([4, size])


def test_sizes_that_can_be_shared_pass():
    processes(4).check_share([4, 8])
    TrainingProcesses(None).check_share([7])


def lightning_trainer(**settings):
    return lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)


def test_an_endless_order_needs_an_end_of_training():
    processes = TrainingProcesses(lightning_trainer(max_epochs=7))
    with pytest.raises(UserError, match=r"max_epochs 7 never reached\.\nSet trainer\.max_steps"):
        processes.check_end(exact=False, validates=False)
    processes.check_end(exact=True, validates=False)


@pytest.mark.parametrize(
    "settings",
    [{"max_steps": 9}, {"max_epochs": 2, "max_time": "00:00:01:00"}, {"max_epochs": 2, "limit_train_batches": 5}],
)
def test_an_endless_order_may_end_by_steps_time_or_limited_epochs(settings):
    TrainingProcesses(lightning_trainer(**settings)).check_end(exact=False, validates=False)


@pytest.mark.parametrize(("interval", "warned"), [(1.0, True), (4, False), (1, False)])
def test_validation_that_would_never_come_is_told(interval, warned, caplog):
    settings = {"val_check_interval": interval, "check_val_every_n_epoch": 1 if interval == 1.0 else None}
    TrainingProcesses(lightning_trainer(max_steps=9, **settings)).check_end(exact=False, validates=True)
    assert ("there will be no validation" in caplog.text) == warned


class Watcher(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, index):
        self.trained.append((batch["sample_index"].tolist(), batch["key"], batch["counted"]))
        return self.weight * batch["video"].float().mean()

    def validation_step(self, batch, index):
        self.validated.append(batch["key"] if batch["counted"] else [])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(rank, shards, folder, devices, *, resume=None, workers=0):
    """Train two exact epochs of 7 samples in steps of 2 and validate; return what this process saw."""
    data = VideoTextData(shards, shards, batch_size=2, num_workers=workers, epoch="exact", seed=3)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        num_sanity_val_steps=0,
        callbacks=[
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False)
        ],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Watcher()
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return model.trained, model.validated


STOPS = (2, 4)
"""In an epoch, and at its end."""


def train_again_and_again(rank, shards, folder, alone):
    """Train from the start on two processes, and continue from checkpoints of a single one."""
    first = train(rank, shards, folder, 2, workers=rank)
    later = [
        train(rank, shards, f"{folder}-{stop}", 2, resume=f"{alone}/step={stop}.ckpt", workers=2 - rank)[0]
        for stop in STOPS
    ]
    return first, later


def assert_same_steps(whole, *parts):
    """Compare steps of one process with the shares of several."""
    assert len({len(whole), *map(len, parts)}) == 1
    for (indices, keys, counted), *shares in zip(whole, *parts, strict=True):
        used = [share for share in shares if share[2]]
        assert sum(share[2] for share in shares) == counted
        assert sorted(index for share in used for index in share[0]) == sorted(indices)
        assert sorted(key for share in used for key in share[1]) == sorted(keys)


def test_two_processes_take_together_what_one_takes_also_where_the_other_stopped(video_shards, tmp_path):
    shards, one, two = str(video_shards(shards=1, samples=7)), str(tmp_path / "one"), str(tmp_path / "two")
    alone, validated_alone = train(0, shards, one, 1)
    together = run_distributed(train_again_and_again, 2, shards, two, one, timeout=300.0)
    assert len(alone) == 8  # two epochs of 4 steps
    assert_same_steps(alone, *(trained for (trained, _), _ in together))
    assert sorted(key for _, keys, _ in alone[:4] for key in keys) == [f"s0n{number}" for number in range(7)]
    validated = [first + second for first, second in zip(*(seen for (_, seen), _ in together), strict=True)]
    assert validated == validated_alone
    for number, stop in enumerate(STOPS):
        assert_same_steps(alone[stop:], *(later[number] for _, later in together))
        again, _ = train(0, shards, f"{one}-{stop}", 1, resume=f"{two}/step={stop}.ckpt", workers=1)
        assert again == alone[stop:]


def fake(local_rank, calls, seen=("x",)):
    strategy = SimpleNamespace(barrier=lambda name: calls.append("barrier"), broadcast=lambda value: list(seen))
    return TrainingProcesses(
        SimpleNamespace(local_rank=local_rank, global_rank=local_rank, world_size=2, strategy=strategy)
    )


@pytest.mark.parametrize(("local_rank", "order"), [(0, ["work", "barrier"]), (1, ["barrier", "work"])])
def test_one_process_goes_first(local_rank, order):
    calls = []
    with fake(local_rank, calls).one_first():
        calls.append("work")
    assert calls == order


def test_the_others_do_not_wait_for_one_that_failed():
    calls = []
    with pytest.raises(UserError), fake(0, calls).one_first():
        raise UserError("no shards")
    assert calls == ["barrier"]


def test_other_data_on_another_machine_are_refused():
    fake(1, [], seen=["x"]).check_same("data.train", ["x"])
    with pytest.raises(UserError, match=r"process 1 sees other data\.train than process 0"):
        fake(1, [], seen=["x"]).check_same("data.train", ["y"])
