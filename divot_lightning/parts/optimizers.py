"""The contract of an optimizer that a recipe chooses: settings, and how they become a torch optimizer.

Shape letters: none; parameters have any shape.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.part import Part

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class TrainedParameter:
    """A parameter that requires gradients, with what an optimizer may want to know about it.

    Attributes:
        name: Name within the stage, such as `video_llm.head.layer.weight`.
        value: The parameter. Under ZeRO stage 3 it is a shard, so its own shape says nothing.
        shape: Shape of the whole parameter.
        is_inner_matrix: Whether it is the weight of a linear layer between hidden states: no embedding, no position, no
            query, no layer that reads or writes data.
        is_partitioned: Whether ZeRO trains it, which replaces the parameters of a group by flat partitions of all of
            them.
    """

    name: str
    value: nn.Parameter
    shape: tuple[int, ...]
    is_inner_matrix: bool = False
    is_partitioned: bool = False


@dataclass(frozen=True)
class TrainingOptimizer(Part, ABC):
    """Settings of an optimizer and of the schedule of its learning rates.

    A subclass is a dataclass too: its fields are its settings in recipes. A recipe says `optimizer: muon`, or
    `optimizer: {class_path: muon, init_args: {lr: 1.0e-3}}`.

    Attributes:
        lr: Peak learning rate, above 0.
        weight_decay: Decoupled weight decay, 0 or more.
        schedule: How the rate falls after the warmup: as a half cosine, linearly, or not at all.
        warmup_steps: Steps in which the rate rises linearly.
        final_lr_fraction: The schedule ends at this fraction of the peak; without effect on `constant`.
        max_nonfinite_steps: Steps whose loss or gradient is not finite are skipped and recorded in
            `<run>/nonfinite.jsonl`; the run ends when there are more than this many.
        needs_whole_parameters: Declared by a class that cannot work on shards of parameters; ZeRO is then refused.

    Raises:
        UserError: A setting is out of range.
    """

    needs_whole_parameters: ClassVar[bool] = False

    lr: float = 1e-4
    weight_decay: float = 0.05
    schedule: Schedule = "cosine"
    warmup_steps: int = 500
    final_lr_fraction: float = 0.05
    max_nonfinite_steps: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer: lr is {self.lr}; it must be above 0")
        for name in ("weight_decay", "warmup_steps", "final_lr_fraction", "max_nonfinite_steps"):
            require_at_least(0, "optimizer: ", **{name: getattr(self, name)})
        if self.schedule == "constant" and self.final_lr_fraction != TrainingOptimizer.final_lr_fraction:
            raise UserError("optimizer: final_lr_fraction has no effect on a constant schedule; leave it out")

    @abstractmethod
    def build(self, parameters: Sequence[TrainedParameter], adamw: type[Optimizer]) -> Optimizer:
        """Return a torch optimizer with every parameter in exactly one group, each group with its peak `lr`.

        Args:
            parameters: In the order of the stage.
            adamw: The class to use as AdamW: torch's, or a faster one of a sharding strategy with the same arguments.
        """

    def lr_fraction(self, step: int, total_steps: int) -> float:
        """Return the learning rate of a step as a fraction of its peak; a subclass may have another schedule.

        Args:
            step: Number of optimizer steps taken, from 0.
            total_steps: Optimizer steps of the whole run.
        """
        return scheduled_fraction(self.schedule, step, self.warmup_steps, total_steps, self.final_lr_fraction)


def scheduled_fraction(
    schedule: Schedule, step: int, warmup_steps: int, total_steps: int, final_fraction: float
) -> float:
    """Return the learning rate of a step as a fraction of its peak.

    >>> scheduled_fraction("cosine", 49, warmup_steps=50, total_steps=100, final_fraction=0.1)
    1.0
    >>> round(scheduled_fraction("cosine", 100, warmup_steps=50, total_steps=100, final_fraction=0.1), 6)
    0.1
    >>> scheduled_fraction("linear", 75, warmup_steps=50, total_steps=100, final_fraction=0.0)
    0.5
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return 1.0
    remaining = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_fraction + (1.0 - final_fraction) * remaining
