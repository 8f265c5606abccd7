"""Activations that are computed again in the backward pass, for models of `diffusers`: less memory for more time."""

from functools import lru_cache
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from divot_lightning.errors import UserError

BLOCKS = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)
"""Parts of `UNet3DConditionModel`, none of which holds another; `diffusers` itself has no checkpointing for it."""


def checkpoint_activations(model: Any) -> None:
    """Let a model keep only what goes into its blocks; loss and gradients stay the same.

    Args:
        model: Of `diffusers`; its own checkpointing is used where it has one.

    Raises:
        UserError: It has none, and no block that is known here.
    """
    if getattr(model, "_supports_gradient_checkpointing", False):
        model.enable_gradient_checkpointing()
        return
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise UserError(f"denoiser.gradient_checkpointing: {type(model).__name__} has no such way; set it to false")
    for block in blocks:
        # The class and not the object's forward: a copy of the object must not run the original's.
        block_class: Any = type(block)
        block.__class__ = _checkpointed(block_class)


@lru_cache
def _checkpointed(block_class: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return block_class.forward(self, *args, **kwargs)
        return checkpoint(block_class.forward, self, *args, use_reentrant=False, **kwargs)

    return type(block_class.__name__, (block_class,), {"forward": forward})
