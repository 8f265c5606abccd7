"""Muon for the matrices inside a network, AdamW for all else, as one optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import AdamW, Muon, Optimizer

from divot_lightning.parts.optimizers import TrainedParameter
from divot_optimizers.adamw import AdamWOptimizer


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
