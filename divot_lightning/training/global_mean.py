"""Losses as means over all samples, targets or clips of a step, however unevenly the processes hold them.

Data-parallel training averages the gradients of the processes. A process with two targets would count as much as one
with two hundred, and the gradient would depend on how samples are distributed. Here each process weights its own mean
by its fraction of the targets of all processes, so that the average over processes is the mean over samples, targets or
clips. The batches that an optimizer step accumulates are treated alike (`divot_lightning.training.accumulation`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

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


class GlobalLoss:
    """A step's loss: what to backpropagate at once, and what is told about it later.

    To read `mean`, `parts` or `finite` waits until the device has computed the losses. So a stage reads them after it
    has started the backward pass. They are the same on all processes.

    Args:
        loss: What this process backpropagates, scalar. The gradients of all processes and of all batches of the step
            average to the gradient of the step's mean.
        weights: Weight of each part by name.
        totals: Counts of all processes, then their means times counts, then the number of processes whose losses are
            not finite; float64, on the device.
    """

    def __init__(self, loss: Tensor, weights: Mapping[str, float], totals: Tensor) -> None:
        self.loss, self.weights = loss, weights
        self._totals = totals

    @cached_property
    def parts(self) -> dict[str, tuple[float, int]]:
        """Mean over all processes and its count, by name; without parts that no process has."""
        counts, sums = self._read[:-1].view(2, -1).tolist()
        return {
            name: (total / count, int(count))
            for name, total, count in zip(self.weights, sums, counts, strict=True)
            if count
        }

    @property
    def mean(self) -> float:
        """Weighted sum of the parts' means over all processes."""
        return weighted_sum(self.weights, self.parts)

    @property
    def finite(self) -> bool:
        """Whether the losses of all processes are finite."""
        return self._read[-1].item() == 0

    @cached_property
    def _read(self) -> Tensor:
        return self._totals.cpu()


def global_mean(
    parts: Mapping[str, LossPart], step_counts: Mapping[str, int] | None = None, num_batches: int = 1
) -> GlobalLoss:
    """Weight the losses of this process; all processes call it at the same time, with the same names.

    Args:
        parts: Losses by name.
        step_counts: Counts of this process, summed over all batches of the step; None where a step is one batch.
        num_batches: Batches of a step, by which the trainer divides.

    >>> result = global_mean({"text": LossPart(torch.tensor(2.0), 3), "head": LossPart(torch.tensor(0.0), 0)})
    >>> result.loss.item(), result.parts, result.finite
    (2.0, {'text': (2.0, 3)}, True)
    """
    every = list(parts.values())
    means = torch.stack([part.mean.detach().double() for part in every])
    counts = torch.tensor([float(part.count) for part in every], dtype=torch.float64)
    of_step = counts if step_counts is None else counts.new_tensor([step_counts[name] for name in parts])
    weights = {name: part.weight for name, part in parts.items()}
    known = torch.stack([counts, of_step, counts.new_tensor(list(weights.values()))])
    given = known.to(means.device, non_blocking=True)
    # A mean that is not finite would make the reported sums of all processes not finite.
    sums = torch.where(given[0] > 0, means, 0.0).nan_to_num(0.0, 0.0, 0.0) * given[0]
    totals = sum_over_processes(torch.cat([given[:2].flatten(), sums, (~means.isfinite()).any().double()[None]]))
    total_counts, step_totals, total_sums = totals[:-1].view(3, -1)
    fractions = given[2] * (given[0] * num_ranks() * num_batches / step_totals.clamp(min=1.0))
    weighted = zip(every, fractions.float().unbind(), strict=True)
    loss = torch.stack([fraction * part.mean for part, fraction in weighted]).sum()
    return GlobalLoss(loss, weights, torch.cat([total_counts, total_sums, totals[-1:]]))


def weighted_sum(weights: Mapping[str, float], means: Mapping[str, tuple[float, int]]) -> float:
    """Add up means by the weights of their parts.

    Args:
        weights: By name.
        means: Value and count by name, as in `GlobalLoss`.
    """
    return sum((weights[name] * value for name, (value, _) in means.items()), 0.0)


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


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum values over all processes.

    Args:
        values: On a device that the process group communicates from; may be overwritten.

    Returns:
        The sums, on the same device.
    """
    if num_ranks() > 1:
        distributed.all_reduce(values)
    return values
