"""A stage with every kind of tensor, data with a position, and a run of some steps under any strategy."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from divot_lightning.checkpoint.rng_state import RandomStates
from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig, StepCheckpoint
from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.models.weights import full_shape
from divot_lightning.training.optimization import configure_optimizer
from divot_optimizers.muon import MuonOptimizer

WIDTH = 5
GLOBAL_BATCH = 6
MUON = MuonOptimizer(lr=0.01, matrix_lr=0.05, warmup_steps=0, iteration_dtype="float32")


class Base(nn.Linear):
    """Stands for weights from a folder: the same whenever and wherever they are loaded."""

    def __init__(self, seed: int) -> None:
        super().__init__(WIDTH, 7)
        generator = torch.Generator().manual_seed(seed)
        self.weight.data = torch.randn(7, WIDTH, generator=generator)
        self.bias.data = torch.randn(7, generator=generator)


class Net(nn.Module):
    """Frozen base from a folder, frozen part from nowhere, adapter, odd sizes, a counting buffer, tied weights."""

    def __init__(self, dropout: float, base_seed: int, width: int) -> None:
        super().__init__()
        self.base = Base(base_seed)
        self.untrained = nn.Linear(7, 7)
        self.adapter = nn.Linear(7, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 3)
        self.again = nn.Linear(width, 3)
        self.again.weight = self.out.weight
        self.base.requires_grad_(False)
        self.untrained.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, value: Tensor) -> Tensor:
        if self.training:
            self.seen += torch.tensor([1.0, 0.5])
        hidden = self.dropout(torch.tanh(self.adapter(self.untrained(self.base(value)))))
        return self.out(hidden) + self.again(hidden)


class TinyStage(LightningModule):
    def __init__(
        self,
        dropout: float = 0.0,
        base_seed: int = 0,
        lr: float = 0.01,
        optimizer: str = "adamw",
        width: int = 11,
    ) -> None:
        super().__init__()
        self.settings = {"dropout": dropout, "base_seed": base_seed, "width": width}
        self.lr, self.optimizer_name = lr, optimizer
        self.losses: list[tuple[int, float, float, list[int]]] = []

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = Net(**self.settings)

    def frozen_sources(self) -> Mapping[str, str]:
        return {"net.base": f"models/base_{self.settings['base_seed']}"}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.net(batch["value"]).square().mean()
        rate = self.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]
        self.losses.append((self.global_step, loss.item(), rate, batch["key"].tolist()))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        torch.rand(3)
        self.log("validation/loss", self.net(batch["value"]).square().mean())

    def configure_optimizers(self) -> Any:
        if self.optimizer_name == "muon":
            is_partitioned = isinstance(self.trainer.strategy, DivotDeepSpeedStrategy)
            return configure_optimizer(self, MUON, total_steps=10, is_partitioned=is_partitioned)
        trained = [value for value in self.parameters() if value.requires_grad]
        groups = [
            {"params": [value for value in trained if len(full_shape(value)) > 1], "weight_decay": 0.1},
            {"params": [value for value in trained if len(full_shape(value)) == 1], "weight_decay": 0.0},
        ]
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.optimizer_name]
        optimizer = kind(groups, lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Samples(IterableDataset[dict[str, Tensor]]):
    def __init__(self, data: "PositionedData", rank: int, world: int) -> None:
        self.data, self.rank, self.world, self.batch = data, rank, world, data.batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.data.position
        while True:
            keys = torch.arange(step * self.batch, (step + 1) * self.batch)[self.rank :: self.world]
            values = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(int(key))) for key in keys]
            step += 1
            yield {"value": torch.stack(values), "key": keys, "position": step}


class PositionedData(LightningDataModule):
    """Batches of `GLOBAL_BATCH` samples distributed over the ranks; a checkpoint holds the position."""

    def __init__(self, batch: int = GLOBAL_BATCH) -> None:
        super().__init__()
        self.batch, self.position = batch, 0

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        samples = Samples(self, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(samples, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([{"value": torch.ones(WIDTH)}], batch_size=1)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        self.position = int(batch.get("position", self.position))
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.position * self.batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["samples"] // self.batch


class Remember(Callback):
    """Keeps the trained parameters of every step as a single process has them; under ZeRO-3 gathered."""

    def __init__(self) -> None:
        self.parameters: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.parameters[trainer.global_step] = whole_parameters(pl_module)


def whole_parameters(stage: LightningModule) -> dict[str, Tensor]:
    found = {}
    for name, value in stage.named_parameters():
        if hasattr(value, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([value]):
                found[name] = value.detach().clone()
        else:
            found[name] = value.detach().clone()
    return found


def train(
    run: Path,
    steps: int,
    *,
    resume: Path | None = None,
    strategy: str = "auto",
    devices: int = 1,
    stage: TinyStage | None = None,
    settings: CheckpointConfig | None = None,
    callbacks: list[Callback] | None = None,
    batch: int = GLOBAL_BATCH,
    **trainer_settings: Any,
) -> dict[str, Any]:
    """Train up to a step; a given checkpoint is continued from.

    Returns:
        "losses": (step, loss, rate, keys) of each micro-batch on this rank; "parameters" by step; "stage"; "trainer".
    """
    seed_everything(3, verbose=False)
    register()
    stage = stage or TinyStage()
    remember = Remember()
    saving = StepCheckpoint(run, settings or CheckpointConfig(every_steps=100), resume_from=resume)
    own = [RandomStates(), remember, saving]
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run,
        callbacks=[*(callbacks or []), *own],
        **{"max_epochs": -1, "limit_val_batches": 0, **trainer_settings},
    )
    trainer.fit(stage, PositionedData(batch))
    return {"losses": stage.losses, "parameters": remember.parameters, "stage": stage, "trainer": trainer}


def register() -> None:
    from divot_lightning.deepspeed_zero.registration import register_strategies
    from divot_lightning.training.training_cli import quiet

    quiet()
    register_strategies()
    sys.stdout.flush()


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"
