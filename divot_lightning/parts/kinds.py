"""The kinds of parts, each with its registry. This module does not import torch."""

from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError
from divot_lightning.parts.registry import Registry

if TYPE_CHECKING:
    from divot_lightning.parts.denoisers import Denoiser
    from divot_lightning.parts.heads import GenerationHead
    from divot_lightning.parts.latents import Latents
    from divot_lightning.parts.objectives import Objective

HEADS: "Registry[GenerationHead]" = Registry(
    "heads", "head", "head", "divot_lightning.parts.heads.GenerationHead", ("hidden_dim", "feature_dim")
)

LATENTS: "Registry[Latents]" = Registry("latents", "latents", "latents", "divot_lightning.parts.latents.Latents")

DENOISERS: "Registry[Denoiser]" = Registry(
    "denoisers",
    "denoiser",
    "denoiser",
    "divot_lightning.parts.denoisers.Denoiser",
    ("channels", "frames", "grid", "condition_tokens", "condition_dim"),
)

OBJECTIVES: "Registry[Objective]" = Registry(
    "objectives", "objective", "objective", "divot_lightning.parts.objectives.Objective"
)

REGISTRIES: dict[str, Registry[Any]] = {registry.kind: registry for registry in (HEADS, LATENTS, DENOISERS, OBJECTIVES)}
"""Every registry by its kind."""


def find_registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in REGISTRIES:
        raise UserError(f"there is no kind of part {kind!r}; kinds: {', '.join(REGISTRIES)}")
    return REGISTRIES[kind]
