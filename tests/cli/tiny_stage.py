"""A stage and its data that train in milliseconds; recipes in the tests name them as `tiny_stage.TinyStage`."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from divot_lightning.errors import UserError
from divot_lightning.parts.heads import GenerationHead


@dataclass
class TinyOptimizer:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass
class TinyLayerConfig:
    width: int


class TinyLayer(nn.Module):
    def __init__(self, config: TinyLayerConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, 1)


class TinyStage(LightningModule):
    def __init__(
        self,
        optimizer: TinyOptimizer,
        width: int = 4,
        head: Callable[[int, int], GenerationHead] | None = None,
        previous: str | None = None,
    ) -> None:
        super().__init__()
        if previous is not None and not Path(previous).is_dir():
            raise UserError(f"there is no run folder {previous}")
        self.layer = TinyLayer(TinyLayerConfig(width))
        self.head = head(8, 4) if head else None
        self.settings = optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer.linear(batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("train/batch_size", float(len(batch)))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("validation/loss", self.layer.linear(batch).square().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self.layer.linear(batch).square().mean())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.settings.lr, betas=self.settings.betas)
        last = max(1, self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / last)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def exported_components(self) -> dict[str, nn.Module]:
        return {"layer": self.layer}

    def used_components(self) -> dict[str, Path]:
        return {}


class LongerStage(TinyStage):
    """A stage whose checkpoints are others."""

    def __init__(self, optimizer: TinyOptimizer) -> None:
        super().__init__(optimizer)
        self.second = nn.Linear(1, 1)


class Endless(IterableDataset[Tensor]):
    def __init__(self, width: int, interrupt_at: int | None, interrupt_by: str) -> None:
        self.width = width
        self.interrupt_at = interrupt_at
        self.interrupt_by = signal.Signals[interrupt_by]

    def __iter__(self) -> Iterator[Tensor]:
        count = 0
        while True:
            if count == self.interrupt_at:
                os.kill(os.getpid(), self.interrupt_by)
            yield torch.ones(self.width)
            count += 1


@dataclass
class TinyClips:
    size: int = 4
    names: list[str] = field(default_factory=list)


class TinyData(LightningDataModule):
    def __init__(
        self,
        train: str | list[str],
        clips: TinyClips,
        batch_size: int = 1,
        interrupt_at: int | None = None,
        interrupt_by: str = "SIGINT",
    ) -> None:
        super().__init__()
        self.train, self.clips, self.batch_size = train, clips, batch_size
        self.interrupt_at, self.interrupt_by = interrupt_at, interrupt_by

    def setup(self, stage: str) -> None:
        if self.train == "missing":
            raise UserError("there are no shards in missing")

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Endless(self.clips.size, self.interrupt_at, self.interrupt_by), self.batch_size)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([torch.ones(self.clips.size)] * 3)

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self.val_dataloader()


class TrainingDataOnly(TinyData):
    def val_dataloader(self) -> list[Tensor]:  # type: ignore[override]
        return []

    def test_dataloader(self) -> list[Tensor]:  # type: ignore[override]
        return []


class FiniteData(TinyData):
    """Has epochs of three batches."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([torch.ones(self.clips.size)] * 3)


class LoggerOfRank(CSVLogger):
    """Leaves a file for each process that builds it."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        Path(f"built-by-{os.environ['RANK']}").touch()
