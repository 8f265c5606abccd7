"""Counts of targets over all accumulated batches of a step, known before the first backward pass.

An optimizer step over several batches shall equal the step over one large batch. Its losses are means over all samples,
text targets or clips of the step, so each batch is weighted by its fraction of them, for each loss separately: a batch
may hold most of the words and none of the clips. The batches are backpropagated one by one and their gradients are
summed, so the weights cannot be corrected afterwards. Therefore the loader reads all batches of a step first, and each
batch carries the counts of all of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from lightning.pytorch import Trainer

from divot_lightning.errors import UserError
from divot_lightning.parts.batch import Batch

CountLosses = Callable[[Batch], Mapping[str, int]]

STEP_COUNTS: Final = "step_counts"
"""Key of a batch's `StepCounts`."""


@dataclass(unsafe_hash=True)
class StepCounts:
    """The counts of a batch and of its optimizer step, on this process alone.

    Attributes:
        index: Index of the batch in the step, from 0.
        num_batches: Batches that a step accumulates; the last step of an epoch may have fewer.
        own: Number of targets of each loss in this batch, by name.
        total: The same, summed over all batches of the step.
    """

    index: int
    num_batches: int
    own: dict[str, int]
    total: dict[str, int]


class StepWindows:
    """A loader that reads all batches of an optimizer step before it yields the first.

    Args:
        loader: Yields the batches.
        num_batches: Batches per optimizer step.
        count: Returns the number of targets of each loss in a batch.
    """

    def __init__(self, loader: Iterable[Batch], num_batches: int, count: CountLosses) -> None:
        self.loader, self.num_batches, self.count = loader, num_batches, count

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches with their `StepCounts`."""
        batches = iter(self.loader)
        while window := list(islice(batches, self.num_batches)):
            counts = [dict(self.count(batch)) for batch in window]
            total = Counter[str]()
            for own in counts:
                total.update(own)
            for index, (batch, own) in enumerate(zip(window, counts, strict=True)):
                yield {**batch, STEP_COUNTS: StepCounts(index, self.num_batches, own, dict(total))}

    def __len__(self) -> int:
        """Return the number of batches, where the loader knows it."""
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """Return other attributes of the loader that Lightning reads, such as its sampler."""
        if name == "loader":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.loader, name)


def load_whole_steps(trainer: Trainer, count: CountLosses) -> None:
    """Make a trainer's loader read all batches of an optimizer step together; call it before the first training batch.

    Args:
        trainer: Accumulates more than one batch per step.
        count: See `StepWindows`.
    """
    loop = trainer.fit_loop
    loop.setup_data()
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    if combined is None or fetcher is None:
        return  # there are no training data
    num_batches = trainer.accumulate_grad_batches
    combined.flattened = [StepWindows(loader, num_batches, count) for loader in combined.flattened]
    iter(fetcher)  # it has begun with the loader as it was
    check_validation(trainer.val_check_batch, loop.max_batches, num_batches)


def check_validation(interval: float | None, epoch: float, num_batches: int) -> None:
    """Refuse validations within an optimizer step: a run could not be resumed from a checkpoint taken there.

    Args:
        interval: Batches between validations; infinite or None without.
        epoch: Batches of an epoch, whose last step may be smaller.
        num_batches: Batches of a step.
    """
    if interval is not None and interval < epoch and interval % num_batches:
        raise UserError(
            f"val_check_interval is {interval:g} batches: a validation would fall within an optimizer step of "
            f"{num_batches} batches (accumulate_grad_batches)\nset it to a multiple of that"
        )


def check_step(step: StepCounts | None, batch_idx: int, num_batches: int, counts: Mapping[str, int]) -> None:
    """Check the counts that a batch carries against the trainer and against its losses.

    Args:
        step: The counts that the batch carries.
        batch_idx: Number of the batch in the epoch.
        num_batches: Batches that the trainer accumulates now.
        counts: Number of targets of each loss, as the stage computed them.

    Raises:
        UserError: The batch belongs to no window of the trainer's steps, or its losses were counted wrongly.
    """
    if step is None or step.num_batches != num_batches or step.index != batch_idx % num_batches:
        raise UserError(
            f"accumulate_grad_batches is {num_batches}, but batch {batch_idx} was not loaded together with its step.\n"
            "A stage that overrides on_fit_start calls super().on_fit_start(); the number cannot change in training."
        )
    if step.own != dict(counts):
        raise UserError(
            f"loss_counts says {step.own} of a batch whose losses are means over {dict(counts)}.\n"
            "Correct the stage's loss_counts, or train with --trainer.accumulate_grad_batches 1"
        )
