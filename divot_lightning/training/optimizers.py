"""The built-in optimizers: AdamW, and Muon beside AdamW."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import AdamW, Muon, Optimizer

from divot_lightning.parts.optimizers import TrainedParameter, TrainingOptimizer


@dataclass(frozen=True)
class AdamWOptimizer(TrainingOptimizer):
    """AdamW as in the paper; the defaults are those of the released LLM training scripts.

    Weight decay is for matrices only.

    Attributes:
        betas: Decay rates of the first and second moment.
        eps: Term against division by zero.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6

    def build(self, parameters: Sequence[TrainedParameter], adamw: type[Optimizer] = AdamW) -> Optimizer:
        """Return AdamW with a group of matrices and a group of gains, biases and other vectors."""
        # a type, whose subclasses take arguments of their own
        make: Any = adamw
        optimizer: Optimizer = make(self.decay_groups(parameters), lr=self.lr, betas=self.betas, eps=self.eps)
        return optimizer

    def decay_groups(self, parameters: Iterable[TrainedParameter]) -> list[dict[str, Any]]:
        """Return parameter groups: weight decay for matrices, none for vectors."""
        every = list(parameters)
        groups = [
            {"params": [entry.value for entry in every if len(entry.shape) > 1], "weight_decay": self.weight_decay},
            {"params": [entry.value for entry in every if len(entry.shape) <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class MuonOptimizer(AdamWOptimizer):
    """Muon for the matrices inside the network, AdamW for all other parameters, the generation head included.

    On the toy world Muon reaches the same reconstruction loss in less than half of the steps (docs/experiments.md).
    `lr`, `betas` and `eps` are AdamW's.

    Attributes:
        matrix_lr: Peak learning rate of Muon, scaled to AdamW's update size.
    """

    needs_whole_parameters: ClassVar[bool] = True

    matrix_lr: float = 6e-3

    def build(self, parameters: Sequence[TrainedParameter], adamw: type[Optimizer] = AdamW) -> Optimizer:
        """Return Muon and AdamW as one optimizer."""
        matrices = [entry.value for entry in parameters if entry.is_inner_matrix]
        muon = Muon(matrices, lr=self.matrix_lr, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw")
        others = [entry for entry in parameters if not entry.is_inner_matrix]
        return JointOptimizer([muon, super().build(others, adamw)])


class JointOptimizer(Optimizer):
    """Several optimizers as one, since Lightning's automatic optimization drives one.

    Args:
        parts: The optimizers; no parameter is in two of them.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def step(self, closure: Any = None) -> Any:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of all parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        # A scheduler changes the rates in our groups, so they have to be the very groups of the parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
