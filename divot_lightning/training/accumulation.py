"""What the losses of accumulated batches are means over, known before the first of them goes backward.

An optimizer step over several batches shall be the step over one large batch. Its losses are means over all samples,
text targets or clips of the step, so each batch has to be weighed by its share of them, for each loss by itself: a
batch may hold most of the words and none of the clips. Losses go backward one batch at a time and their gradients are
added up, which cannot be taken apart afterwards. So the loader hands a step's batches over together, and each of them
carries the counts of all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer

from divot_lightning.errors import UserError

Batch = dict[str, Any]
CountLosses = Callable[[Batch], Mapping[str, int]]

STEP_COUNTS = "step_counts"
"""Key of a batch's `StepCounts`."""


@dataclass(unsafe_hash=True)
class StepCounts:
    """What an accumulated batch knows of its optimizer step; of this process alone.

    Attributes:
        index: Place of the batch in the step, from 0.
        num_batches: Batches that a step accumulates; the last step of an epoch may have fewer.
        own: What each loss of this batch is a mean over, by name.
        total: The same of all batches of the step.
    """

    index: int
    num_batches: int
    own: dict[str, int]
    total: dict[str, int]


class StepWindows:
    """A loader that reads all batches of an optimizer step before it gives the first.

    Args:
        loader: Gives the batches.
        num_batches: Batches per optimizer step.
        count: Tells from a batch what its losses are means over.
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
        """Return what else Lightning asks a loader for, such as its sampler."""
        if name == "loader":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.loader, name)


def load_whole_steps(trainer: Trainer, count: CountLosses) -> None:
    """Have a trainer's training loader read whole optimizer steps; called before the first batch is trained on.

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
    """Refuse validations within an optimizer step: a checkpoint that one asks for could not be continued from.

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
    """Make sure that what a batch knows of its step is true.

    Args:
        step: What the batch carries.
        batch_idx: Number of the batch in the epoch.
        num_batches: Batches that the trainer accumulates now.
        counts: What the batch's losses turned out to be means over.

    Raises:
        UserError: The batch belongs to no window of the trainer's steps, or its losses were counted wrongly.
    """
    if step is None or step.num_batches != num_batches or step.index != batch_idx % num_batches:
        raise UserError(
            f"accumulate_grad_batches is {num_batches}, but batch {batch_idx} was not handed over with its step.\n"
            "A stage that overrides on_fit_start calls super().on_fit_start(); the number cannot change in training."
        )
    if step.own != dict(counts):
        raise UserError(
            f"loss_counts says {step.own} of a batch whose losses are means over {dict(counts)}.\n"
            "Correct the stage's loss_counts, or train with --trainer.accumulate_grad_batches 1"
        )
