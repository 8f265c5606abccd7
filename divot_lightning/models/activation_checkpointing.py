"""Activation checkpointing for models of `diffusers`: recompute activations in the backward pass to save memory."""

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
"""Blocks of `UNet3DConditionModel`, none inside another; `diffusers` has no checkpointing for this model."""


def checkpoint_activations(model: Any) -> None:
    """Make a model store only the inputs of its blocks for the backward pass; loss and gradients stay the same.

    Args:
        model: A model of `diffusers`; its own checkpointing is used if it has one.

    Raises:
        UserError: It has no checkpointing of its own and none of the blocks in `BLOCKS`.
    """
    if getattr(model, "_supports_gradient_checkpointing", False):
        model.enable_gradient_checkpointing()
        return
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise UserError(f"denoiser.gradient_checkpointing: {type(model).__name__} cannot do it; set it to false")
    for block in blocks:
        # Replace the class, not `block.forward`: a deep copy of the block would run the original's `forward`.
        block_class: Any = type(block)
        block.__class__ = _checkpointed(block_class)


@lru_cache
def _checkpointed(block_class: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return block_class.forward(self, *args, **kwargs)
        return checkpoint(block_class.forward, self, *args, use_reentrant=False, **kwargs)

    return type(block_class.__name__, (block_class,), {"forward": forward})
