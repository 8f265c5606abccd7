"""Losses as means over everything that the processes of a step hold together, however unevenly it is spread.

Data-parallel training averages the gradients of the processes. A process with two targets would count as much as one
with two hundred, and the gradient would depend on how samples are dealt out. Here each process weighs its own mean by
its share of what all hold, so that the average over processes is the mean over samples, targets or clips. The same
goes for the batches that an optimizer step accumulates (`divot_lightning.training.accumulation`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class LossPart:
    """One of the losses that are trained together.

    Attributes:
        mean: Mean over what this process holds, scalar float32.
        count: What the mean is over: samples, text targets or clips; 0 where the batch has none.
        weight: Of this part in the sum.
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
        parts: Mean over all processes, and what it is over; parts that no process has are left out.
        finite: Whether the losses of all processes are finite.
    """

    loss: Tensor
    mean: float
    parts: dict[str, tuple[float, int]]
    finite: bool


def global_mean(
    parts: Mapping[str, LossPart], step_counts: Mapping[str, int] | None = None, num_batches: int = 1
) -> GlobalLoss:
    """Weigh the losses of this process; all processes call it at the same time, with the same names.

    Args:
        parts: Losses by name.
        step_counts: What the losses of this process are means over in all batches of the step together; None where a
            step is one batch.
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
    # What is not finite must not spoil the sums of the others, which are reported.
    sums = torch.where(counts > 0, means, 0.0).nan_to_num(0.0, 0.0, 0.0) * counts
    of_step = counts if step_counts is None else counts.new_tensor([step_counts[name] for name in parts])
    totals = sum_over_processes(torch.cat([counts, sums, of_step, (~finite).double()[None]]), every[0].mean.device)
    total_counts, total_sums, step_totals = totals[:-1].view(3, -1)
    shares = (counts * num_processes() * num_batches / step_totals.clamp(min=1.0)).tolist()
    loss = torch.stack([part.weight * share * part.mean for part, share in zip(every, shares, strict=True)]).sum()
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
        parts: Give the weights.
        means: Value and count by name, as in `GlobalLoss`.
    """
    return sum((parts[name].weight * value for name, (value, _) in means.items()), 0.0)


def merge_means(
    before: Mapping[str, tuple[float, int]], new: Mapping[str, tuple[float, int]]
) -> dict[str, tuple[float, int]]:
    """Return the means over what two sets of means are over; either may lack a name.

    >>> merge_means({"text": (1.0, 3)}, {"text": (2.0, 1), "head": (4.0, 2)})
    {'text': (1.25, 4), 'head': (4.0, 2)}
    """
    merged = dict(before)
    for name, (value, count) in new.items():
        old, old_count = before.get(name, (0.0, 0))
        together = old_count + count
        merged[name] = ((old * old_count + value * count) / together, together)
    return merged


def num_processes() -> int:
    """Count the processes that train together; 1 without a process group."""
    return distributed.get_world_size() if _together() else 1


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """Add up what all processes hold.

    Args:
        values: On the CPU.
        device: A device that the process group communicates from.

    Returns:
        The sums, on the CPU.
    """
    if num_processes() == 1:
        return values
    moved = values.to(device)
    distributed.all_reduce(moved)
    return moved.cpu()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
