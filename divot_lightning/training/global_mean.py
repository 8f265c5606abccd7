"""Losses as means over all samples, targets or clips of a step, however unevenly the processes hold them.

Data-parallel training averages the gradients of the processes. A process with two targets would count as much as one
with two hundred, and the gradient would depend on how samples are distributed. Here each process weights its own mean
by its fraction of the targets of all processes, so that the average over processes is the mean over samples, targets or
clips. The batches that an optimizer step accumulates are treated alike (`divot_lightning.training.accumulation`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from divot_lightning.distributed.ranks import num_ranks


@dataclass(frozen=True)
class LossPart:
    """One of the losses that are trained together.

    Attributes:
        mean: Mean on this process, scalar float32.
        count: Number of samples, text targets or clips in the mean; 0 where the batch has none.
        weight: Weight of this part in the sum.
    """

    mean: Tensor
    count: int
    weight: float = 1.0


class GlobalLoss(NamedTuple):
    """A step's loss.

    Attributes:
        loss: What this process backpropagates, scalar. The gradients of all processes and of all batches of the step
            average to the gradient of the step's mean.
        mean: Weighted sum of the parts' means over all processes.
        parts: Mean over all processes and its count, by name; without parts that no process has.
        finite: Whether the losses of all processes are finite.
    """

    loss: Tensor
    mean: float
    parts: dict[str, tuple[float, int]]
    finite: bool


def global_mean(
    parts: Mapping[str, LossPart], step_counts: Mapping[str, int] | None = None, num_batches: int = 1
) -> GlobalLoss:
    """Weight the losses of this process; all processes call it at the same time, with the same names.

    Args:
        parts: Losses by name.
        step_counts: Counts of this process, summed over all batches of the step; None where a step is one batch.
        num_batches: Batches of a step, by which the trainer divides.

    Returns:
        See `GlobalLoss`; everything but `loss` is the same on all processes.

    >>> result = global_mean({"text": LossPart(torch.tensor(2.0), 3), "head": LossPart(torch.tensor(0.0), 0)})
    >>> result.loss.item(), result.parts, result.finite
    (2.0, {'text': (2.0, 3)}, True)
    """
    every = list(parts.values())
    counts = torch.tensor([float(part.count) for part in every], dtype=torch.float64)
    means = torch.stack([part.mean.detach().double() for part in every]).cpu()
    finite = means.isfinite().all()
    # A mean that is not finite would make the reported sums of all processes not finite.
    sums = torch.where(counts > 0, means, 0.0).nan_to_num(0.0, 0.0, 0.0) * counts
    of_step = counts if step_counts is None else counts.new_tensor([step_counts[name] for name in parts])
    totals = sum_over_processes(torch.cat([counts, sums, of_step, (~finite).double()[None]]), every[0].mean.device)
    total_counts, total_sums, step_totals = totals[:-1].view(3, -1)
    fractions = (counts * num_ranks() * num_batches / step_totals.clamp(min=1.0)).tolist()
    loss = torch.stack(
        [part.weight * fraction * part.mean for part, fraction in zip(every, fractions, strict=True)]
    ).sum()
    found = {
        name: (total / count, int(count))
        for name, total, count in zip(parts, total_sums.tolist(), total_counts.tolist(), strict=True)
        if count
    }
    mean = weighted_sum(parts, found)
    return GlobalLoss(loss, mean, found, totals[-1].item() == 0)


def weighted_sum(parts: Mapping[str, LossPart], means: Mapping[str, tuple[float, int]]) -> float:
    """Add up means by the weights of their parts.

    Args:
        parts: Have the weights.
        means: Value and count by name, as in `GlobalLoss`.
    """
    return sum((parts[name].weight * value for name, (value, _) in means.items()), 0.0)


def merge_means(
    before: Mapping[str, tuple[float, int]], new: Mapping[str, tuple[float, int]]
) -> dict[str, tuple[float, int]]:
    """Merge two sets of means with their counts; either may lack a name.

    >>> merge_means({"text": (1.0, 3)}, {"text": (2.0, 1), "head": (4.0, 2)})
    {'text': (1.25, 4), 'head': (4.0, 2)}
    """
    merged = dict(before)
    for name, (value, count) in new.items():
        old, old_count = before.get(name, (0.0, 0))
        together = old_count + count
        merged[name] = ((old * old_count + value * count) / together, together)
    return merged


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """Sum values over all processes.

    Args:
        values: On the CPU.
        device: A device that the process group communicates from.

    Returns:
        The sums, on the CPU.
    """
    if num_ranks() == 1:
        return values
    moved = values.to(device)
    distributed.all_reduce(moved)
    return moved.cpu()
