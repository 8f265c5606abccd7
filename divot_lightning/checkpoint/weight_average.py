"""An exponential moving average (EMA) of the trained weights; under ZeRO it is sharded as the weights are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from divot_lightning.checkpoint.folder_reading import CheckpointReader, check_names
from divot_lightning.checkpoint.folder_writing import Entry
from divot_lightning.checkpoint.module_tensors import TensorAccess
from divot_lightning.checkpoint.run_state import tensor_access
from divot_lightning.checkpoint.tensor_file import TensorSpec
from divot_lightning.distributed.environment import say
from divot_lightning.errors import UserError
from divot_lightning.models.weights import full_shape

GROUP = "ema"


class WeightAverage(Callback):
    """Averages the trained weights after every optimizer step; checkpoints hold the average by parameter.

    In a recipe: `trainer.callbacks: [{class_path: divot_lightning.checkpoint.weight_average.WeightAverage}]`.
    Each rank averages the tensors that its optimizer updates: under ZeRO its partition, so that the average is sharded.

    Args:
        decay: Fraction of the old average that is kept at a step. At early steps n it is at most (1 + n) / (10 + n), so
            that the untrained weights are soon forgotten.
        use: Validate, test and export the averaged weights; without it they are only kept in checkpoints.
    """

    def __init__(self, decay: float = 0.999, use: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise UserError(f"WeightAverage: decay is {decay}; it must be at least 0 and less than 1")
        self.decay = decay
        self.use = use
        self.averages: list[Tensor] = []
        self._access: TensorAccess | None = None
        self._held: list[Tensor] = []
        self._step = 0

    def checkpoint_entries(self, access: TensorAccess) -> list[Entry]:
        """List the tensors for a checkpoint."""
        return [
            Entry(
                GROUP,
                name,
                TensorSpec(torch.float32, full_shape(value)),
                partial(access.read_copy, name, self.averages),
            )
            for name, value in access.tensors.trained.items()
        ]

    def restore(self, reader: CheckpointReader, access: TensorAccess, trainer: Trainer) -> None:
        """Continue with the averages of a checkpoint; outside training put them into the model if they are used."""
        trained, stored = access.tensors.trained, reader.names(GROUP)
        if trainer.state.fn == TrainerFn.FITTING:
            self._start(access)
            if not stored:
                say(f"{reader.folder} holds no averaged weights: the average starts with its weights\n")
                return
            check_names(reader.folder, stored, set(trained))
            for name in trained:
                access.write_copy(name, reader.get(GROUP, name), self.averages)
        elif self.use:
            check_names(reader.folder, stored, set(trained))
            for name, value in trained.items():
                access.write(value, reader.get(GROUP, name))
            access.flush()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the weights as they are; `restore` follows if the run continues from a checkpoint."""
        self._start(tensor_access(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the step at which training starts."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        assert self._access is not None
        average(self.averages, self._access.masters, step=self._step, decay=self.decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averaged weights into the model."""
        if self.use and trainer.state.fn == TrainerFn.FITTING:
            self._hold()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back, since a checkpoint may follow."""
        self._put_back()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the model within the block; all ranks enter it together."""
        self._hold()
        try:
            yield
        finally:
            self._put_back()

    def _start(self, access: TensorAccess) -> None:
        self._access = access
        self.averages = [master.detach().to(torch.float32, copy=True) for master in access.masters]

    def _hold(self) -> None:
        if self._access is None or self._held:
            return
        self._held = [master.detach().clone() for master in self._access.masters]
        _overwrite(self._access, self.averages)

    def _put_back(self) -> None:
        if self._held:
            assert self._access is not None
            _overwrite(self._access, self._held)
            self._held = []


@contextmanager
def averaged_weights(trainer: Trainer) -> Iterator[None]:
    """Put averaged weights into the model within the block, if the run uses them; all ranks enter it together."""
    found = _average_in_use(trainer)
    if found is None:
        yield
    else:
        with found.applied():
            yield


def exports_average(trainer: Trainer) -> bool:
    """Return whether `averaged_weights` puts averaged weights into the model."""
    return _average_in_use(trainer) is not None


def _average_in_use(trainer: Trainer) -> WeightAverage | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, WeightAverage) and callback.use), None)


@torch.no_grad()
def average(averages: Sequence[Tensor], values: Sequence[Tensor], *, step: int, decay: float) -> None:
    """Move averages towards values, in place.

    Args:
        averages: Float32.
        values: Of the same shapes, any precision.
        step: Number of steps so far, at least 1.
        decay: Fraction of the averages that is kept at late steps.

    >>> averages = [torch.tensor([1.0])]
    >>> average(averages, [torch.tensor([3.0])], step=90, decay=0.5)
    >>> averages[0].item()
    2.0
    """
    keep = min(decay, (1 + step) / (10 + step))
    for kept, value in zip(averages, values, strict=True):
        kept.lerp_(value.to(kept.dtype), 1.0 - keep)


def _overwrite(access: TensorAccess, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for master, value in zip(access.masters, values, strict=True):
            master.copy_(value)
    access.flush()
