"""Writes what a finished stage hands on."""

import json
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from divot_lightning import __version__
from divot_lightning.components import record_components, save_component

FINISHED_FILE = "finished.json"


@runtime_checkable
class HandsOn(Protocol):
    """A stage that hands components on."""

    def exported_components(self) -> dict[str, nn.Module]:
        """Returns what the stage trained, by component name."""
        ...

    def used_components(self) -> dict[str, Path]:
        """Returns the folders of what the stage used and did not change, by component name."""
        ...


class ComponentExport(Callback):
    """Writes a stage's components and `finished.json` into the run folder when training has reached its end.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.started = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.started = time.monotonic()

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the components, then the record, then the mark that all of it is there."""
        if trainer.interrupted or not isinstance(pl_module, HandsOn):
            return
        self.run.mkdir(parents=True, exist_ok=True)
        for name, module in pl_module.exported_components().items():
            save_component(module, self.run / name)
        record_components(self.run, pl_module.used_components())
        finished = {
            "stage": type(pl_module).__name__,
            "steps": trainer.global_step,
            "seconds_since_start_or_resume": round(time.monotonic() - self.started, 1),
            "versions": {
                "divot-lightning": __version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
        }
        (self.run / FINISHED_FILE).write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
