"""A stage and its data that train in milliseconds; recipes in the tests name them as `tiny_stage.TinyStage`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from divot_lightning.errors import UserError
from divot_lightning.heads import GenerationHead


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
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("validation/loss", self.layer.linear(batch).square().mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self.layer.linear(batch).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.settings.lr, betas=self.settings.betas)

    def exported_components(self) -> dict[str, nn.Module]:
        return {"layer": self.layer}

    def used_components(self) -> dict[str, Path]:
        return {}


class Endless(IterableDataset[Tensor]):
    def __init__(self, width: int, fail_at: int | None) -> None:
        self.width = width
        self.fail_at = fail_at

    def __iter__(self) -> Iterator[Tensor]:
        count = 0
        while True:
            if count == self.fail_at:
                raise KeyboardInterrupt
            yield torch.ones(self.width)
            count += 1


@dataclass
class TinyClips:
    size: int = 4
    names: list[str] = field(default_factory=list)


class TinyData(LightningDataModule):
    def __init__(self, train: str | list[str], clips: TinyClips, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.train, self.clips, self.interrupt_at = train, clips, interrupt_at

    def setup(self, stage: str) -> None:
        if self.train == "missing":
            raise UserError("there are no shards in missing")

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Endless(self.clips.size, self.interrupt_at))

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([torch.ones(self.clips.size)] * 3)

    def test_dataloader(self) -> DataLoader[Tensor]:
        return self.val_dataloader()
