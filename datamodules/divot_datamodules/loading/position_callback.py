"""A callback that connects training steps with their data: which batches were used, and the time spent waiting."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from divot_datamodules.loading.plan_loader import TrainLoader
from divot_datamodules.order.data_position import TrainPosition


class PositionCallback(Callback):
    """Notes which batches were used, before checkpoints are saved; logs the fraction of time spent waiting for data.

    Args:
        position: Position of training in the order.
    """

    def __init__(self, position: TrainPosition) -> None:
        self.position = position
        self.loader: TrainLoader | None = None
        self._since = 0.0
        self._waited = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make Lightning fetch again if it fetched a batch before the checkpoint set the position."""
        fetcher = trainer.fit_loop._data_fetcher
        if fetcher is not None and self.loader is not None and self.loader.began_too_early:
            iter(fetcher)
        self._restart_clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the position to the step after this batch."""
        self.position.used(batch["position"])
        if self.loader is not None and trainer._logger_connector.should_update_logs:
            fraction = (self.loader.waited_seconds - self._waited) / (time.perf_counter() - self._since)
            pl_module.log("data/wait_share", fraction, rank_zero_only=True)
            self._restart_clock()

    def _restart_clock(self) -> None:
        self._since = time.perf_counter()
        self._waited = self.loader.waited_seconds if self.loader is not None else 0.0
