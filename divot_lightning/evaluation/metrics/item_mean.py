"""Average one value per clip or text, with the same result for any number of processes and any split over them."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ItemMean(Metric):
    """Mean over items, from a sum in float64 and a count; metrics define what an item's value is in `update`.

    torchmetrics keeps lists of values for some metrics and gathers them entry by entry, which fails if the
    processes have updated unequally often; sums do not fail.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, values_B: Tensor) -> None:
        """Add the values of items, (B,) float."""
        self.total += values_B.to(self.total.device, torch.float64).sum()
        self.count += len(values_B)

    def compute(self) -> Tensor:
        """Return the mean, scalar float64; NaN before the first item."""
        return self.total / self.count
