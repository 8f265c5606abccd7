"""What all parts have in common: a part records its settings, so that a saved model can build it again.

No torch in here.
"""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from divot_lightning.errors import UserError
from divot_lightning.parts.registries.registry import Registry, class_path
from divot_lightning.parts.registries.trusted_classes import require_trusted


class Part:
    """Base of the base class of every kind of part.

    Attributes:
        supplied_args: Declared by the base class of a kind: names of the arguments of `__init__` that the suite
            supplies, such as a width. A recipe supplies all others; they must be values that JSON can hold.
        init_args: The settings that this part was built with: all arguments but the supplied ones, with defaults. They
            are recorded when the part is built; a subclass needs no code for it.
    """

    supplied_args: ClassVar[tuple[str, ...]] = ()
    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the settings before `__init__` runs."""
        part = super().__new__(cls)
        # Not `part.init_args = ...`: a torch module takes no attributes before its own __init__ has run.
        object.__setattr__(part, "init_args", _capture_settings(cls, args, kwargs))
        return part


@dataclass(frozen=True)
class PartSpec:
    """Class and settings of a part, as `config.json` of a component folder records them.

    A config holds either a factory (from a recipe) or a `PartSpec` (from a component folder) of each of its parts;
    both are called with the supplied arguments and return the part.

    Attributes:
        class_path: Dotted path of the class.
        init_args: Its settings.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    def build(self, registry: Registry[Any], where: str, **supplied: Any) -> Any:
        """Build the part if its class is trusted.

        Args:
            registry: Registry of the part's kind.
            where: What names the class, for messages: such as "the stored tokenizer".
            **supplied: The arguments that the suite supplies.

        Raises:
            UserError: The class is not trusted, cannot be imported or does not take these settings.
        """
        require_trusted(self.class_path, where)
        return registry.build(self.class_path, self.init_args, **supplied)


def spec_of(part: Part) -> PartSpec:
    """Return class and settings of a part that was built."""
    return PartSpec(class_path(type(part)), dict(part.init_args))


def build_part(given: Any, registry: Registry[Any], where: str, **supplied: Any) -> Any:
    """Build a part from what a config holds.

    Args:
        given: A factory (a callable that takes the supplied arguments by name), a `PartSpec`, or a dictionary with
            `class_path` and `init_args`, as in `config.json`.
        registry: Registry of the part's kind.
        where: What holds the config, for messages: such as "the stored tokenizer".
        **supplied: The arguments that the suite supplies.

    Returns:
        The part.

    Raises:
        UserError: See `PartSpec.build`.
    """
    if isinstance(given, dict):
        given = PartSpec(**given)
    if isinstance(given, PartSpec):
        return given.build(registry, where, **supplied)
    return given(**supplied)


def _capture_settings(cls: type[Part], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind the arguments of a call to their names; values are converted as JSON would convert them."""
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
    except TypeError:
        # A copy or an unpickling, which restores the settings later, or a wrong call, which __init__ refuses.
        return {}
    bound.apply_defaults()
    settings: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            settings.update(value)
        else:
            settings[name] = value
    return {name: _through_json(cls, name, value) for name, value in settings.items() if name not in cls.supplied_args}


def _through_json(cls: type, name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=os.fspath))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{cls.__name__}: setting {name}={value!r} cannot be stored as JSON, so the part could not be rebuilt\n"
            "Allowed are numbers, strings, booleans, None, and lists and dicts of these; pass a name and look it up."
        ) from error
