"""The whole state of a run, saved into a checkpoint folder and loaded from one.

Lightning's own checkpoint files are not used: `StepCheckpoint` calls `RunState` from its hooks, and `trainer.fit` gets
no `ckpt_path`. The hooks that stages, callbacks and data modules know from Lightning are called all the same:
`state_dict` and `load_state_dict`, `on_save_checkpoint` and `on_load_checkpoint`.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn

from divot_lightning.checkpoint.folder_reading import (
    CheckpointReader,
    optimizer_record,
    require_run_state,
    restore_optimizers,
    restore_weights,
)
from divot_lightning.checkpoint.folder_writing import Entry, save_folder, stage_entries
from divot_lightning.checkpoint.module_tensors import TensorAccess, sort_tensors
from divot_lightning.checkpoint.optimizer_state import restore_schedulers
from divot_lightning.checkpoint.provenance import FrozenRecord, read_provenance, verify_frozen
from divot_lightning.checkpoint.whole_tensors import WholeTensors
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError

_STORED_AS_TENSORS: dict[str, Any] = {"state_dict": {}, "optimizer_states": []}
"""Entries that hooks written for Lightning's checkpoints may look for; here tensors are stored one by one."""


@runtime_checkable
class KeepsTensors(Protocol):
    """A callback with tensors of its own in a checkpoint, such as averaged weights."""

    def checkpoint_entries(self, access: TensorAccess) -> list[Entry]:
        """List the tensors; all ranks call it together."""
        ...

    def restore(self, reader: CheckpointReader, access: TensorAccess, trainer: Trainer) -> None:
        """Read the tensors, after the stage has been restored; all ranks call it together."""
        ...


class RunState:
    """Stage, optimizers, schedules, loops, position in the data, random states and averages of a run.

    All ranks call the methods together, when the strategy has been set up.

    Args:
        trainer: Holds them all.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._frozen = FrozenRecord()

    def save(self, folder: Path) -> None:
        """Write a checkpoint folder.

        Raises:
            CheckpointNotWritten: A rank could not write; raised on all.
            UserError: A hook returned something else than plain data.
        """
        trainer, access, ranks = self.trainer, tensor_access(self.trainer), Ranks.all()
        layout = {
            "world_size": trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "optimizer": optimizer_record(access),
        }
        save_folder(
            folder,
            [*stage_entries(access), *(entry for part in self._parts() for entry in part.checkpoint_entries(access))],
            state={**self._plain_state(), "layout": layout},
            provenance=self._frozen.describe(access.tensors, access.read, ranks),
            about={"step": trainer.global_step, "world_size": trainer.world_size},
            ranks=ranks,
            writers=access.writers(ranks),
        )

    def load(self, folder: Path) -> None:
        """Verify a checkpoint folder and restore everything from it; a run that only validates takes the weights.

        Raises:
            UserError: The folder is damaged, does not fit, or was made with other frozen weights.
        """
        trainer = self.trainer
        is_fitting = trainer.state.fn == TrainerFn.FITTING
        state = self._restore(folder, tensor_access(trainer), with_optimizers=is_fitting)
        self._call_load_hooks({**_STORED_AS_TENSORS, **state})
        if is_fitting:
            self._restore_progress(state)

    def load_stage(self, stage: LightningModule, folder: Path) -> None:
        """Verify a checkpoint folder and restore the weights of a stage that this process holds whole.

        Args:
            stage: Built; the trainer need not know it.
            folder: The checkpoint.

        Raises:
            UserError: As `load`.
        """
        self._restore(folder, WholeTensors(sort_tensors(stage), []), with_optimizers=False)

    def _restore(self, folder: Path, access: TensorAccess, *, with_optimizers: bool) -> dict[str, Any]:
        """Restore all tensors of a checkpoint, and return the rest of it."""
        ranks = Ranks.all()
        reader = CheckpointReader(folder, ranks)
        state = reader.state()
        require_run_state(reader, state)
        verify_frozen(read_provenance(folder), self._frozen.describe(access.tensors, access.read, ranks))
        with torch.inference_mode(False), torch.no_grad():
            restore_weights(reader, access)
            if with_optimizers:
                restore_optimizers(reader, access, state["layout"]["optimizer"])
            access.flush()
            for part in self._parts():
                part.restore(reader, access, self.trainer)
        return state

    def _plain_state(self) -> dict[str, Any]:
        """Collect everything that is no tensor of the stage, under the names that Lightning gives it."""
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        state: dict[str, Any] = {
            **_STORED_AS_TENSORS,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": lightning.__version__,
            "loops": {"fit_loop": trainer.fit_loop.state_dict()},
            "callbacks": call._call_callbacks_state_dict(trainer),
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            _name(trainer.precision_plugin): trainer.precision_plugin.state_dict(),
        }
        if data is not None:
            state[_name(data)] = call._call_lightning_datamodule_hook(trainer, "state_dict")
        call._call_callbacks_on_save_checkpoint(trainer, state)
        call._call_lightning_module_hook(trainer, "on_save_checkpoint", state)
        return {name: value for name, value in state.items() if name not in _STORED_AS_TENSORS}

    def _call_load_hooks(self, state: dict[str, Any]) -> None:
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        call._call_lightning_module_hook(trainer, "on_load_checkpoint", state)
        if data is not None and state.get(_name(data)):
            call._call_lightning_datamodule_hook(trainer, "load_state_dict", state[_name(data)])
        call._call_callbacks_on_load_checkpoint(trainer, state)
        call._call_callbacks_load_state_dict(trainer, state)

    def _restore_progress(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        rescale_batches(state, trainer)
        if precision := state.get(_name(trainer.precision_plugin)):
            trainer.precision_plugin.load_state_dict(precision)
        trainer.fit_loop.load_state_dict(state["loops"]["fit_loop"])
        restore_schedulers(trainer.lr_scheduler_configs, state["lr_schedulers"])
        if trainer.fit_loop._data_fetcher is not None:
            iter(trainer.fit_loop._data_fetcher)  # opened while optimizers were built, before the data were positioned

    def _parts(self) -> list[KeepsTensors]:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [callback for callback in callbacks if isinstance(callback, KeepsTensors)]


def tensor_access(trainer: Trainer) -> TensorAccess:
    """Return access to the tensors of a trainer's stage and its optimizers by name, whichever way they are held.

    Raises:
        UserError: The trainer's strategy holds them in a way that is not known here.
    """
    strategy: Any = trainer.strategy
    if hasattr(strategy, "tensor_access"):
        return strategy.tensor_access()
    require_known_strategy(trainer)
    stage: LightningModule = trainer.lightning_module
    return WholeTensors(sort_tensors(stage), strategy.optimizers)


def require_known_strategy(trainer: Trainer) -> None:
    """Refuse a strategy whose tensors cannot be read by name.

    Raises:
        UserError: As it says.
    """
    strategy = trainer.strategy
    if not hasattr(strategy, "tensor_access") and type(strategy) not in (SingleDeviceStrategy, DDPStrategy):
        raise UserError(
            f"--trainer.strategy {type(strategy).__name__} has checkpoints that divot resume cannot continue from\n"
            "choose auto, ddp, divot_zero1, divot_zero2 or divot_zero3"
        )


def rescale_batches(state: dict[str, Any], trainer: Trainer) -> None:
    """Recompute the counts of batches if a step has another number of them now; checkpoints are between steps."""
    then, now = state["layout"]["accumulate_grad_batches"], trainer.accumulate_grad_batches
    if then == now:
        return
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        for name, count in counters.items():
            counters[name] = count // then * now


def _name(part: object) -> str:
    """Return the name under which Lightning stores the state of a data module or a precision plugin."""
    return type(part).__qualname__
