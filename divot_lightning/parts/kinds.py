"""The kinds of parts, each with its registry. This module does not import torch."""

from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError
from divot_lightning.parts.registry import Registry

if TYPE_CHECKING:
    from divot_lightning.parts.heads import GenerationHead

HEADS: "Registry[GenerationHead]" = Registry(
    "heads", "head", "head", "divot_lightning.parts.heads.GenerationHead", ("hidden_dim", "feature_dim")
)

REGISTRIES: dict[str, Registry[Any]] = {registry.kind: registry for registry in (HEADS,)}
"""Every registry by its kind."""


def find_registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in REGISTRIES:
        raise UserError(f"there is no kind of part {kind!r}; kinds: {', '.join(REGISTRIES)}")
    return REGISTRIES[kind]
