"""AdamW, with weight decay of matrices or of all parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.optimizers import TrainedParameter, TrainingOptimizer


@dataclass(frozen=True)
class AdamWOptimizer(TrainingOptimizer):
    """AdamW as in the paper; the defaults are those of the released LLM training scripts.

    Attributes:
        betas: Decay rates of the first and second moment.
        eps: Term against division by zero.
        decayed: Parameters with weight decay: "matrices", or "all", with gains, biases and other vectors, as in the
            released scripts.
    """

    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    decayed: Literal["matrices", "all"] = "matrices"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, "optimizer: ", eps=self.eps)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer: betas is {list(self.betas)}; each must be at least 0 and below 1")

    def build(self, parameters: Sequence[TrainedParameter], adamw: type[Optimizer] = AdamW) -> Optimizer:
        """Return AdamW with a group of parameters that have weight decay and one of the others."""
        # a type, whose subclasses take arguments of their own
        make: Any = adamw
        # On a CPU, torch's default makes several passes over a parameter's memory, and the fused kernel makes one.
        # ZeRO puts other tensors in the place of the parameters, perhaps on another device.
        fused = adamw is AdamW and all(
            entry.value.device.type == "cpu" and not entry.is_partitioned for entry in parameters
        )
        options = {"fused": True} if fused else {}
        optimizer = make(self.decay_groups(parameters), lr=self.lr, betas=self.betas, eps=self.eps, **options)
        if fused:
            # With it, a gradient scaler leaves unscaling to the optimizer, and Lightning refuses to clip gradients.
            optimizer._step_supports_amp_scaling = False
        return optimizer

    def decay_groups(self, parameters: Iterable[TrainedParameter]) -> list[dict[str, Any]]:
        """Return parameter groups: with weight decay, and without it."""
        decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for entry in parameters:
            decayed[self.decayed == "all" or len(entry.shape) > 1].append(entry.value)
        groups: list[dict[str, Any]] = [
            {"params": decayed[True], "weight_decay": self.weight_decay},
            {"params": decayed[False], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
