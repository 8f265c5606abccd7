"""Export of a finished stage: its component folders and `finished.json`."""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from divot_lightning import __version__
from divot_lightning.checkpoint.components import new_component
from divot_lightning.checkpoint.module_tensors import TensorAccess
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.checkpoint.run_state import tensor_access
from divot_lightning.checkpoint.tensor_file import TensorFile
from divot_lightning.checkpoint.weight_average import averaged_weights, exports_average
from divot_lightning.io.files import write_atomically
from divot_lightning.training.run_folder import FINISHED


@runtime_checkable
class Exportable(Protocol):
    """A stage that exports components."""

    def exported_components(self) -> dict[str, nn.Module]:
        """Return the trained modules by component name."""
        ...

    def used_components(self) -> dict[str, Path]:
        """Return the folders of components that the stage used unchanged, by component name."""
        ...


class ComponentExport(Callback):
    """Writes a stage's components and `finished.json` into the run folder when training has reached its end.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.started = time.monotonic()
        self.first_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step at which a resumed run starts."""
        self.first_step = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the components, then `components.json`, then `finished.json`; all processes take part."""
        if trainer.interrupted or not isinstance(pl_module, Exportable):
            return
        if trainer.is_global_zero:
            self.run.mkdir(parents=True, exist_ok=True)
        access = tensor_access(trainer)
        with averaged_weights(trainer):
            for name, module in pl_module.exported_components().items():
                export_component(module, self.run / name, access, first=trainer.is_global_zero)
        if trainer.is_global_zero:
            self._finish(trainer, pl_module)
        trainer.strategy.barrier("components are written")

    def _finish(self, trainer: Trainer, stage: Exportable) -> None:
        record_components(self.run, stage.used_components())
        finished = {
            "stage": type(stage).__name__,
            "steps": trainer.global_step,
            "weights": "averaged" if exports_average(trainer) else "trained",
            "seconds_since_start_or_resume": round(time.monotonic() - self.started, 1),
            "steps_since_start_or_resume": trainer.global_step - self.first_step,
            **peak_gpu_memory(),
            "versions": {
                "divot-lightning": __version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
        }
        write_atomically(self.run / FINISHED, json.dumps(finished, indent=1) + "\n")


def peak_gpu_memory() -> dict[str, float]:
    """Return the peak memory of this process's tensors on its GPU, in MiB; an empty dictionary without a GPU."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    return {"peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1)}


def export_component(module: nn.Module, folder: Path, access: TensorAccess, *, first: bool) -> None:
    """Write a component folder tensor by tensor; all processes call it together.

    Args:
        module: Has a `config`; see `divot_lightning.checkpoint.components`.
        folder: Where to.
        access: Returns whole tensors to the first process.
        first: Whether this is the first process, which writes.
    """
    buffers = dict(module.named_buffers())
    kept = {name: buffers[name] for name in module.state_dict() if name in buffers}
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **kept}
    specs = {name: access.spec(tensor) for name, tensor in tensors.items()}
    with new_component(module, folder) if first else nullcontext(None) as weights_file:
        file = TensorFile(weights_file, specs) if weights_file is not None else None
        # Largest elements first, as the file wants them; all processes must read in the same order.
        for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
            tensor = access.read(tensors[name], 0)
            if file is not None:
                assert tensor is not None
                file.write(name, tensor)
        if file is not None and isinstance(error := file.close(), OSError):
            raise error
