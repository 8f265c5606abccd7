"""Callbacks of every run: `RunOpening` writes the run folder, `StepProgress` shows a bar."""

import sys
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_only

from divot_lightning.training.config_changes import write_config
from divot_lightning.training.reporting.run_logging import CsvMetrics
from divot_lightning.training.reporting.services import log_settings, record_ids
from divot_lightning.training.reporting.speed import BAR_NAMES
from divot_lightning.training.run_folder import FINISHED

SLOW_REFRESH_SECONDS = 15.0
"""Seconds between two lines of the bar where the output is a file or a pipe."""


class RunOpening(Callback):
    """Writes `<run>/config.yaml` after the first step, so that a run which fails before it leaves nothing behind.

    Args:
        run: The run folder.
        config: The text of `config.yaml`.
    """

    def __init__(self, run: Path, config: str) -> None:
        self.run = run
        self.config = config
        self.first_step: int | None = None
        self.opened = False
        self.rows: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the number of rows of `metrics.csv` to the checkpoint."""
        metrics = _csv_metrics(trainer)
        if metrics is not None and trainer.is_global_zero:
            checkpoint["metrics"] = metrics.position()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the number of rows that a resumed run keeps; checkpoints of earlier versions have none."""
        self.first_step = checkpoint["global_step"]
        self.rows = checkpoint.get("metrics")

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the folder of a run that is resumed with a pending validation."""
        if not trainer.sanity_checking:
            self._open(trainer)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the number of parameters, the steps and the run folder."""
        self.first_step = trainer.global_step
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        trained = sum(size for size, learns in sizes if learns) / 1e6
        frozen = sum(size for size, learns in sizes if not learns) / 1e6
        sys.stderr.write(
            f"{type(pl_module).__name__}: {trained:.2f} M trained and {frozen:.2f} M frozen parameters, "
            f"steps {self.first_step} to {total_steps(trainer) or 'endless'}, into {self.run}\n"
        )

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Open the folder after the first step."""
        self._open(trainer)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the folder of a run without steps: `max_steps: 0` exports untrained components."""
        if not trainer.interrupted:
            self._open(trainer)

    def _open(self, trainer: Trainer) -> None:
        if self.opened:
            return
        self.opened = True
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / FINISHED).unlink(missing_ok=True)
        settings = yaml.safe_load(self.config)
        if record_ids(settings["trainer"]["logger"], trainer.loggers):
            self.config = self.config.partition("\n")[0] + "\n" + yaml.safe_dump(settings, sort_keys=False)
        write_config(self.run, self.config)
        for logger in trainer.loggers:  # services such as W&B show the settings beside the curves; ours ignore them
            log_settings(logger, settings)
        metrics = _csv_metrics(trainer)
        if metrics is not None:
            metrics.resume(trainer.global_step if self.first_step is None else self.first_step, self.rows)


class StepProgress(TQDMProgressBar):
    """One bar from step 0 to `max_steps` with rate and time left, whatever the data set calls an epoch.

    Where stderr is no terminal, it writes a line every `SLOW_REFRESH_SECONDS`.

    Args:
        title: Text left of the bar.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title
        self.shown = 0.0
        self.refresh_seconds = 0.2 if sys.stderr.isatty() else SLOW_REFRESH_SECONDS

    def init_train_tqdm(self) -> Tqdm:
        """Open the bar at the current step, which is not 0 in a resumed run."""
        return Tqdm(
            total=total_steps(self.trainer),
            initial=self.trainer.global_step,
            desc=self.title,
            unit="step",
            disable=self.is_disabled,
            dynamic_ncols=True,
            mininterval=self.refresh_seconds,
        )

    def init_validation_tqdm(self) -> Tqdm:
        """Show no bar of its own for a validation."""
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Keep the bar: it counts steps, not batches of an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the bar."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar to the last optimizer step."""
        bar = self.train_progress_bar
        if time.monotonic() - self.shown > self.refresh_seconds:
            self.shown = time.monotonic()
            metrics = self.get_metrics(trainer, pl_module)
            metrics.pop("v_num", None)
            bar.set_postfix({BAR_NAMES.get(name, name): value for name, value in metrics.items()}, refresh=False)
        bar.update(trainer.global_step - bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the bar; the next step shows the metrics."""
        self.reset_dataloader_idx_tracker()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar where it is, so that messages start on a line of their own."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()


def _csv_metrics(trainer: Trainer) -> CsvMetrics | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, CsvMetrics)), None)


def total_steps(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the whole run, or None when neither steps nor epochs bound it."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps != float("inf") else None
