"""Refuse parts of a recipe that have another shape than a mapping, a list or a number. No torch in here."""

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any

from divot_lightning.errors import UserError


def as_mapping(where: str, given: Any, example: str) -> Mapping[str, Any]:
    """Return a mapping; nothing is an empty one.

    Args:
        where: Name of the part in the message.
        given: As YAML gives it.
        example: A right one, for the message.

    Raises:
        UserError: It is something else.

    >>> as_mapping("`scores`", None, "{toy/all: higher}")
    {}
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is {str(given)[:100]!r}; give a mapping, such as {example}.")
    return given


def as_list(where: str, given: Any, example: str) -> Sequence[Any]:
    """Return a list; nothing is an empty one. Arguments as in `as_mapping`.

    Raises:
        UserError: It is something else.
    """
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        raise UserError(f"{where} is {str(given)[:100]!r}; give a list, such as {example}.")
    return given


def is_number(given: Any, kind: type | UnionType = int) -> bool:
    """Return whether a value is a number of a kind; true and false are none."""
    return isinstance(given, kind) and not isinstance(given, bool)
