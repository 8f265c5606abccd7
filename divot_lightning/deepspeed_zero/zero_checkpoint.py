"""Checkpoint folders for the DeepSpeed strategy: the same as those of one process, written and read by all ranks."""

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.types import _PATH
from torch.optim import Optimizer

from divot_lightning.checkpoint.folder_writing import CheckpointNotWritten
from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.checkpoint.run_state import is_fitting, load_run, restore_training, save_run
from divot_lightning.deepspeed_zero.partitioned_tensors import PartitionedTensors
from divot_lightning.distributed.ranks import Ranks


class CheckpointFolders:
    """A mixin before Lightning's `DeepSpeedStrategy`, which replaces DeepSpeed's own checkpoints.

    Attributes:
        keep_failure: Keep an error in `failure` instead of raising it, for `save_together`.
        failure: The error; the same on all ranks.
    """

    keep_failure = False
    failure: CheckpointNotWritten | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        """Write a folder; each rank writes a part."""
        strategy: Any = self
        try:
            save_run(strategy, self.tensor_access(), checkpoint, Path(strategy.broadcast(filepath)), Ranks.all())
        except CheckpointNotWritten as failure:
            if not self.keep_failure:
                raise
            self.failure = failure

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore the stage from a folder; in training also its optimizer and schedules."""
        strategy: Any = self
        access = self.tensor_access()
        reader, state = load_run(strategy, access, Path(checkpoint_path), Ranks.all())
        if is_fitting(strategy):
            restore_training(strategy, access, reader, state)
        return {**state, "state_dict": {}, "lr_schedulers": [], "checkpoint_reader": reader}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: tensors are stored one by one."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return nothing: optimizer states are stored one by one."""
        return {}

    def tensor_access(self) -> PartitionedTensors:
        """Return access to the tensors of the stage and its optimizer by name."""
        strategy: Any = self
        return PartitionedTensors(sort_tensors(strategy.lightning_module), strategy.model)
