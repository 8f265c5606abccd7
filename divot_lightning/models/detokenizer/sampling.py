"""Sampling with classifier-free guidance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from divot_lightning.errors import UserError, require_at_least


@dataclass(frozen=True)
class SamplingConfig:
    """Config of the sampling that all objectives have in common; the defaults are the released ones.

    Attributes:
        steps: Denoising steps, at least 1.
        guidance: Scale, at least 0, of the classifier-free guidance against the tokens of an all-zero clip; 1 is no
            guidance.
        guidance_rescale: How far the contrast of the guided prediction is moved back to that of the conditional one, in
            [0, 1] (arXiv:2305.08891, section 3.4).
    """

    steps: int = 50
    guidance: float = 7.5
    guidance_rescale: float = 0.7

    def __post_init__(self) -> None:
        require_at_least(1, "sampling.", steps=self.steps)
        require_at_least(0, "sampling.", guidance=self.guidance)
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"sampling.guidance_rescale is {self.guidance_rescale}; it must be from 0 to 1")


def guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float) -> Tensor:
    """Apply classifier-free guidance and move the contrast back (arXiv:2305.08891, equations 14 to 16).

    Args:
        conditional: Prediction with the condition, (B, ...).
        unconditional: Prediction without it, (B, ...).
        scale: Guidance scale; 1 gives the conditional prediction.
        rescale: How far the contrast moves back to that of the conditional prediction, in [0, 1].

    Returns:
        The guided prediction, (B, ...).
    """
    guided = unconditional + scale * (conditional - unconditional)
    axes = tuple(range(1, guided.ndim))
    # An untrained network predicts a constant, so the contrast may be 0.
    contrast = guided.std(axes, keepdim=True).clamp(min=1e-8)
    matched = guided * conditional.std(axes, keepdim=True) / contrast
    return torch.lerp(guided, matched, rescale)
