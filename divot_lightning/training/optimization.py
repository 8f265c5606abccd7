"""Set up the optimizer of a stage and its learning-rate schedule."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from divot_lightning.errors import UserError
from divot_lightning.models.weights import full_shape
from divot_lightning.parts.optimizers import TrainedParameter, TrainingOptimizer


def configure_optimizer(
    module: nn.Module,
    settings: TrainingOptimizer,
    total_steps: int,
    adamw: type[Optimizer] = AdamW,
    is_partitioned: bool = False,
) -> OptimizerLRSchedulerConfig:
    """Build what a stage's `configure_optimizers` returns, for the parameters that require gradients.

    Args:
        module: The stage.
        settings: The optimizer.
        total_steps: Optimizer steps of the whole run.
        adamw: The class to use as AdamW; it takes the arguments of torch's AdamW.
        is_partitioned: Whether ZeRO trains the module.

    Returns:
        Optimizer and a schedule that is stepped after every optimizer step.

    Raises:
        UserError: All parameters are frozen.
    """
    parameters = trained_parameters(module, is_partitioned)
    if not parameters:
        raise UserError(
            f"all parameters of a {type(module).__name__} are frozen, so that there is nothing to train\n"
            "let the recipe freeze less"
        )
    optimizer = settings.build(parameters, adamw)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.lr_fraction(step, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained_parameters(module: nn.Module, is_partitioned: bool = False) -> list[TrainedParameter]:
    """Return the parameters that require gradients, in the module's order."""
    inner = {id(value) for value in inner_matrices(module)}
    return [
        TrainedParameter(name, value, tuple(full_shape(value)), id(value) in inner, is_partitioned)
        for name, value in module.named_parameters()
        if value.requires_grad
    ]


def inner_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear layers between hidden states.

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
