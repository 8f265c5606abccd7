"""The contract of a metric: what it measures on one prediction, and how measurements become scores.

Shape letters: F frames, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.part import Part

Measured = Mapping[str, Any]


class BenchmarkMetric(Part, Metric, ABC):
    """A torchmetrics metric that works in two steps.

    `measure` looks at one prediction and returns values that JSON can hold. They are stored with the prediction, on
    whichever process made it, and are not measured again. `update` and `compute` turn the stored values of all items
    into scores. States are merged over processes by torchmetrics: declare each with `add_state` and a `dist_reduce_fx`.

    Attributes:
        inputs: What `measure` reads: "answers" (text), "clips" (pixels), or "features" of the tokenizer.
        higher_is_better: The direction of its scores; of torchmetrics.
        best: The best value that a score can have, such as 1 for an accuracy and 0 for a distance.
    """

    inputs: ClassVar[Literal["answers", "clips", "features"]]
    higher_is_better = True
    best: ClassVar[float] = 1.0
    is_differentiable = False
    full_state_update = False

    @abstractmethod
    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return what the scores need to know about one prediction, as JSON values under names of your own."""

    @abstractmethod
    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add the measurements of items; `measured` also holds the entries of the item's line in predictions.jsonl."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Return scalars by score name; NaN where no item was measured."""

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return each item's own value of a score, for scores that are a mean; evaluations can then be paired."""
        return [{} for _ in items]

    def counts(self) -> dict[str, int]:
        """Return by score on how many items of this process it was measured; absent ones were measured on all."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return what decides the scores besides the predictions, for the protocol: networks with hashes, rules."""
        return {}


class ItemMetric(BenchmarkMetric):
    """Mean over items of values that each item has on its own.

    The sum is in float64, so the result does not depend on how items are divided over processes.

    Attributes:
        scores: Names of the scores; `measure` returns a number for each, or `values` derives them.
    """

    scores: ClassVar[tuple[str, ...]]
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(self.scores), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def values(self, measured: Measured, item: BenchmarkItem) -> dict[str, float]:
        """Return the value of each score for one item."""
        return {name: float(measured[name]) for name in self.scores}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add the values of items."""
        for values in map(self.values, measured, items):
            row = [values[name] for name in self.scores]
            self.total += torch.tensor(row, dtype=torch.float64, device=self.total.device)
        self.count += len(items)

    def compute(self) -> dict[str, Tensor]:
        """Return the means, scalars in float64."""
        return dict(zip(self.scores, self.total / self.count, strict=True))

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return the values themselves."""
        return list(map(self.values, measured, items))


class JoinedMetric(BenchmarkMetric):
    """Base of metrics whose scores depend on all items together, such as a distance between distributions.

    The state is a row of numbers, which is joined over processes. Any number of items, also none, may be on a process:
    torchmetrics joins lists entry by entry, so each process always has an entry.

    Attributes:
        dtype_of_numbers: Type of the numbers.
    """

    dtype_of_numbers: ClassVar[torch.dtype] = torch.float64
    numbers: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("numbers", [], dist_reduce_fx="cat")
        self.add(torch.zeros(0, dtype=self.dtype_of_numbers))

    def reset(self) -> None:
        """Forget all items."""
        super().reset()
        self.add(torch.zeros(0, dtype=self.dtype_of_numbers))

    def add(self, values: Tensor) -> None:
        """Add numbers to the state, of any shape; they are kept flat."""
        assert isinstance(self.numbers, list)
        self.numbers.append(values.flatten().to(self.dtype_of_numbers))

    def joined(self) -> Tensor:
        """Return all numbers, flat, on the CPU."""
        return dim_zero_cat(self.numbers).cpu()
