"""Saving and restoring a run: between Lightning's checkpoint dictionary and our checkpoint folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn

from divot_lightning.checkpoint.folder_reading import (
    CheckpointReader,
    optimizer_record,
    require_run_state,
    restore_optimizers,
    restore_weights,
)
from divot_lightning.checkpoint.folder_writing import CheckpointNotWritten, TensorAccess, save_folder, stage_entries
from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.checkpoint.optimizer_state import restore_schedulers
from divot_lightning.checkpoint.provenance import FrozenRecord, read_provenance, verify_frozen
from divot_lightning.checkpoint.run_loops import use_resuming_loops
from divot_lightning.checkpoint.whole_tensors import WholeTensors
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError

_LEFT_OUT = {"state_dict", "optimizer_states"}
"""Keys of Lightning's dictionary that are stored tensor by tensor instead."""
_SETTINGS = "hyper_parameters"
"""Part of the names under which Lightning stores settings; the run's config.yaml has them."""

_FROZEN: WeakKeyDictionary[LightningModule, FrozenRecord] = WeakKeyDictionary()


def save_run(strategy: Strategy, access: TensorAccess, checkpoint: dict[str, Any], folder: Path, ranks: Ranks) -> None:
    """Write a checkpoint folder; all of `ranks` call it together.

    Args:
        strategy: Holds stage and trainer.
        access: Reads their tensors.
        checkpoint: Lightning's dictionary.
        folder: Where it appears when it is whole.
        ranks: The processes that write.

    Raises:
        CheckpointNotWritten: A rank could not write.
    """
    stage = _stage(strategy)
    trainer = stage.trainer
    layout = {
        "world_size": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "optimizer": optimizer_record(access),
    }
    state = {key: value for key, value in checkpoint.items() if key not in _LEFT_OUT and _SETTINGS not in key}
    averages = [entry for found in _averages(trainer) for entry in found.entries(access)]
    save_folder(
        folder,
        [*stage_entries(access), *averages],
        state={**state, "layout": layout},
        provenance=_frozen_record(stage).describe(access.tensors, access.read, ranks),
        about={"step": trainer.global_step, "world_size": trainer.world_size},
        ranks=ranks,
    )


def load_run(strategy: Strategy, access: TensorAccess, folder: Path, ranks: Ranks) -> tuple[CheckpointReader, Any]:
    """Verify a checkpoint folder and restore all weights of the stage.

    Returns:
        The checkpoint, and Lightning's dictionary without tensors of the stage and its optimizers.

    Raises:
        UserError: The folder is damaged, does not fit, or was made with other frozen weights.
    """
    stage = _stage(strategy)
    reader = CheckpointReader(folder, ranks)
    state = reader.state()
    require_run_state(reader, state)
    verify_frozen(read_provenance(folder), _frozen_record(stage).describe(access.tensors, access.read, ranks))
    restore_weights(reader, access)
    rescale_batches(state, stage.trainer)
    return reader, state


def restore_training(strategy: Strategy, access: TensorAccess, reader: CheckpointReader, state: dict[str, Any]) -> None:
    """Restore optimizers and schedules, once they exist."""
    restore_optimizers(reader, access, state["layout"]["optimizer"])
    access.flush()
    restore_schedulers(_stage(strategy).trainer.lr_scheduler_configs, state["lr_schedulers"])


def rescale_batches(state: dict[str, Any], trainer: Trainer) -> None:
    """Recompute the counts of batches if a step has another number of them now; checkpoints are between steps."""
    then, now = state["layout"]["accumulate_grad_batches"], trainer.accumulate_grad_batches
    if then == now or "loops" not in state:
        return
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        for name, count in counters.items():
            counters[name] = count // then * now


class FolderCheckpointIO(CheckpointIO):
    """Lets Lightning's own strategies for one process and for DDP save and load checkpoint folders.

    Under DDP Lightning lets only the first process save. `save_together` keeps an error of that process and raises it
    on all; every other caller gets the error at once.

    Args:
        strategy: The trainer's strategy.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.keep_failure = False
        self.failure: CheckpointNotWritten | None = None

    def tensor_access(self) -> WholeTensors:
        """Return access to the tensors of the stage and its optimizers by name."""
        return WholeTensors(sort_tensors(_stage(self.strategy)), self.strategy.optimizers)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a folder."""
        try:
            save_run(self.strategy, self.tensor_access(), checkpoint, Path(path), Ranks())
        except CheckpointNotWritten as failure:
            if not self.keep_failure:
                raise
            self.failure = failure

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Restore the stage from a folder; optimizers follow when Lightning asks for them."""
        reader, state = load_run(self.strategy, self.tensor_access(), Path(path), Ranks.all())
        later = _Later(lambda: restore_training(self.strategy, self.tensor_access(), reader, state))
        stage = _stage(self.strategy)
        # Lightning loads this dictionary into the stage, whose weights are restored already.
        return {
            **state,
            "state_dict": stage.state_dict(),
            "optimizer_states": later,
            "lr_schedulers": [],
            "checkpoint_reader": reader,
        }

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a folder; it is never visible half removed."""
        from divot_lightning.checkpoint.retention import remove_folder

        remove_folder(Path(path))


class _Later:
    """Restores all optimizers when Lightning iterates over their states, which it does after building them."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self.restore = restore

    def __iter__(self) -> Iterator[Any]:
        self.restore()
        return iter(())


def use_checkpoint_folders(trainer: Trainer) -> None:
    """Make a new trainer save checkpoint folders when a step is logged, and resume from them.

    Raises:
        UserError: Its strategy has checkpoints of its own.
    """
    use_resuming_loops(trainer)
    strategy = trainer.strategy
    if hasattr(strategy, "keep_failure"):
        return
    if type(strategy) in (SingleDeviceStrategy, DDPStrategy):
        strategy.checkpoint_io = FolderCheckpointIO(strategy)
    else:
        raise UserError(
            f"--trainer.strategy {type(strategy).__name__} has checkpoints that divot resume cannot continue from\n"
            "choose auto, ddp, divot_zero1, divot_zero2 or divot_zero3"
        )


def save_together(trainer: Trainer, folder: Path) -> None:
    """Save a checkpoint; all ranks call it together.

    Raises:
        CheckpointNotWritten: On all ranks, if one of them could not write.
    """
    keeper = _keeper(trainer.strategy)
    keeper.failure, keeper.keep_failure = None, True
    try:
        trainer.save_checkpoint(folder)
    finally:
        keeper.keep_failure = False
    failure = next((found for found in Ranks.all().gather(keeper.failure) if found is not None), None)
    if failure is not None:
        raise failure


def tensor_access(strategy: Strategy) -> TensorAccess:
    """Return access to the tensors of a stage and its optimizers by name, for a strategy with checkpoint folders."""
    access: TensorAccess = _keeper(strategy).tensor_access()
    return access


def is_fitting(strategy: Strategy) -> bool:
    """Return whether the trainer trains, which needs optimizers, or only validates or tests."""
    return _stage(strategy).trainer.state.fn == TrainerFn.FITTING


def _keeper(strategy: Strategy) -> Any:
    return strategy if hasattr(strategy, "keep_failure") else strategy.checkpoint_io


def _averages(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.callbacks if hasattr(callback, "averages")]  # type: ignore[attr-defined]


def _stage(strategy: Strategy) -> LightningModule:
    stage = strategy.lightning_module
    assert stage is not None
    return stage


def _frozen_record(stage: LightningModule) -> FrozenRecord:
    return _FROZEN.setdefault(stage, FrozenRecord(stage))
