"""The kinds of parts, each with its registry. This module does not import torch."""

from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError
from divot_lightning.parts.registry import Registry

if TYPE_CHECKING:
    from divot_lightning.parts.heads import GenerationHead
    from divot_lightning.parts.sources import Source
    from divot_lightning.parts.tasks import Task

HEADS: "Registry[GenerationHead]" = Registry(
    "heads", "head", "head", "divot_lightning.parts.heads.GenerationHead", ("hidden_dim", "feature_dim")
)

SOURCES: "Registry[Source]" = Registry(
    "sources", "source", "source", "divot_lightning.parts.sources.Source", ("index_folder",)
)

TASKS: "Registry[Task]" = Registry("tasks", "task", "tasks", "divot_lightning.parts.tasks.Task", ("template",))

REGISTRIES: dict[str, Registry[Any]] = {registry.kind: registry for registry in (HEADS, SOURCES, TASKS)}
"""Every registry by its kind."""


def find_registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in REGISTRIES:
        raise UserError(f"there is no kind of part {kind!r}; kinds: {', '.join(REGISTRIES)}")
    return REGISTRIES[kind]
