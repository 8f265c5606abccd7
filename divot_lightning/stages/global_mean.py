"""Losses as means over everything that the processes of a step hold together, however unevenly it is spread.

Data-parallel training averages the gradients of the processes. A process with two targets would count as much as one
with two hundred, and the gradient would depend on how samples are dealt out. Here each process weighs its own mean by
its share of what all hold, so that the average over processes is the mean over samples, targets or clips.
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
        loss: What this process backpropagates, scalar; the mean of all processes' gradients is the gradient of `mean`.
        mean: Weighted sum of the parts' means over all processes.
        parts: Mean over all processes, and what it is over; parts that no process has are left out.
        finite: Whether the losses of all processes are finite.
    """

    loss: Tensor
    mean: float
    parts: dict[str, tuple[float, int]]
    finite: bool


def global_mean(parts: Mapping[str, LossPart]) -> GlobalLoss:
    """Weighs the losses of this process; all processes call it at the same time, with the same names.

    Args:
        parts: Losses by name.

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
    totals = sum_over_processes(torch.cat([counts, sums, (~finite).double()[None]]), every[0].mean.device)
    total_counts, total_sums, num_bad = totals[: len(every)], totals[len(every) : -1], totals[-1]
    shares = (counts * num_processes() / total_counts.clamp(min=1.0)).tolist()
    loss = torch.stack([part.weight * share * part.mean for part, share in zip(every, shares, strict=True)]).sum()
    found = {
        name: (total / count, int(count))
        for name, total, count in zip(parts, total_sums.tolist(), total_counts.tolist(), strict=True)
        if count
    }
    mean = sum((parts[name].weight * value for name, (value, _) in found.items()), 0.0)
    return GlobalLoss(loss, mean, found, num_bad.item() == 0)


def num_processes() -> int:
    """Counts the processes that train together; 1 without a process group."""
    return distributed.get_world_size() if _together() else 1


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """Adds up what all processes hold.

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
