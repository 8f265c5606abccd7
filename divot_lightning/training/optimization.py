"""The optimizer and learning-rate schedule of all stages."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from divot_lightning.models.weights import full_shape


@dataclass
class OptimizerConfig:
    """Settings of the optimizer; the defaults are those of the released LLM training scripts.

    Attributes:
        name: `adamw` as in the paper, or `muon`: Muon for the matrices inside the network (`inner_matrices`), AdamW for
            all other parameters, the generation head included.
            On the toy world Muon reaches the same reconstruction loss in less than half of the steps
            (docs/experiments.md); it needs whole matrices and has not been run under ZeRO.
        lr: Peak learning rate of AdamW.
        matrix_lr: Peak learning rate of Muon, scaled to AdamW's update size; `muon` only.
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's term against division by zero.
        weight_decay: Decoupled weight decay, for matrices only.
        warmup_steps: Steps in which the rate rises linearly.
        final_lr_fraction: The cosine ends at this fraction of the peak.
        max_nonfinite_steps: Steps whose loss or gradient is not finite are skipped and recorded in
            `<run>/nonfinite.jsonl`; the run ends when there are more than this many.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    matrix_lr: float = 6e-3
    betas: tuple[float, float] = field(default=(0.9, 0.98))
    eps: float = 1e-6
    weight_decay: float = 0.05
    warmup_steps: int = 500
    final_lr_fraction: float = 0.05
    max_nonfinite_steps: int = 20


class MuonWithAdamW(Optimizer):
    """Muon and AdamW as one optimizer, since Lightning's automatic optimization drives one.

    Args:
        matrices: Two-dimensional parameters inside the network, for Muon.
        groups: AdamW's parameter groups.
        settings: Rates and decay.
    """

    def __init__(self, matrices: list[nn.Parameter], groups: list[dict[str, Any]], settings: OptimizerConfig) -> None:
        self.parts: list[Optimizer] = [
            Muon(
                matrices,
                lr=settings.matrix_lr,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps),
        ]
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
        """Return the states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        # A scheduler changes the rates in our groups, so they have to be the very groups of the parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def cosine_with_warmup(step: int, *, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """Return the learning rate of a step as a fraction of its peak.

    >>> cosine_with_warmup(49, warmup_steps=50, total_steps=100, final_fraction=0.1)
    1.0
    >>> round(cosine_with_warmup(100, warmup_steps=50, total_steps=100, final_fraction=0.1), 6)
    0.1
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def configure_optimizer(
    module: nn.Module, settings: OptimizerConfig, total_steps: int, adamw: type[Optimizer] = AdamW
) -> OptimizerLRSchedulerConfig:
    """Build what a stage's `configure_optimizers` returns, for the parameters that require gradients.

    Args:
        module: The stage.
        settings: The optimizer.
        total_steps: Optimizer steps of the whole run.
        adamw: The class behind the name `adamw`; it takes the arguments of torch's AdamW.

    Returns:
        Optimizer and a schedule that is stepped after every optimizer step.
    """
    trained = [value for value in module.parameters() if value.requires_grad]
    optimizer: Optimizer
    if settings.name == "muon":
        matrices = inner_matrices(module)
        chosen = {id(value) for value in matrices}
        others = (value for value in trained if id(value) not in chosen)
        optimizer = MuonWithAdamW(matrices, _decay_groups(others, settings), settings)
    else:
        groups = _decay_groups(trained, settings)
        # a type, whose subclasses take arguments of their own
        make: Any = adamw
        optimizer = make(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)

    def fraction(step: int) -> float:
        return cosine_with_warmup(
            step,
            warmup_steps=settings.warmup_steps,
            total_steps=total_steps,
            final_fraction=settings.final_lr_fraction,
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _decay_groups(parameters: Iterable[Tensor], settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Build parameter groups: weight decay for matrices, none for gains, biases and other vectors."""
    every = list(parameters)
    groups = [
        {"params": [value for value in every if len(full_shape(value)) > 1], "weight_decay": settings.weight_decay},
        {"params": [value for value in every if len(full_shape(value)) <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def inner_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the matrices for Muon: weights of linear layers between hidden states.

    Embeddings, positions and queries are no linear layers. Two kinds of linear layers are excluded: the output layer of
    a language model, and the submodules that a module names in `outer_layers`, since they read or write data.

    Args:
        module: The stage.

    Returns:
        Those that require gradients, in the module's order.
    """
    outer: set[nn.Module] = set()
    for owner in module.modules():
        outer.update(*(owner.get_submodule(name).modules() for name in getattr(owner, "outer_layers", ())))
        if isinstance(owner, PreTrainedModel) and (output := owner.get_output_embeddings()) is not None:
            outer.update(output.modules())
    others = {
        id(value)
        for owner in module.modules()
        if owner in outer or not isinstance(owner, _LINEAR)
        for value in owner.parameters(recurse=False)
    }
    trained = (value for value in module.parameters() if value.requires_grad)
    return [value for value in trained if len(full_shape(value)) == 2 and id(value) not in others]


_LINEAR = (nn.Linear, Conv1D)
"""torch's linear layer, and that of GPT-2."""
