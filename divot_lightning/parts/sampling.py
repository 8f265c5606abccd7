"""Change how a trained head or an objective samples: guidance, steps, solver or what else its class declares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, get_type_hints

import torch

from divot_lightning.errors import UserError
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.objectives import Objective


class HasObjective(Protocol):
    """A de-tokenizer, or whatever else samples with an objective."""

    objective: Objective


def sampling_of(part: GenerationHead | Objective) -> dict[str, Any]:
    """Return the present sampling settings of a head or an objective, as JSON values."""
    # A subclass may fix a setting that its base class declares; it then has no setting of that name.
    return {name: part.init_args[name] for name in part.sampling_settings if name in part.init_args}


def set_sampling(head: GenerationHead, values: Mapping[str, Any]) -> None:
    """Change sampling settings of a head in place; its weights stay as they are.

    Values that the class refuses when it is built are refused here too.

    Args:
        head: Any head.
        values: New values by name. Strings, as from a command line, are converted to the types that the class
            declares.

    Raises:
        UserError: A name is not a sampling setting of this head, or a value is not allowed.

    >>> from divot_heads.gmm import GMMHead
    >>> head = GMMHead(8, 4)
    >>> set_sampling(head, {"variance_scale": "0.5"})
    >>> head.variance_scale, sampling_of(head)
    (0.5, {'variance_scale': 0.5})
    """
    if not values:
        return
    kind = type(head)
    _refuse_unknown(head, values)
    read = _read(kind, values)
    # A copy on the meta device, which needs no memory: its class checks the values and may convert them.
    with torch.device("meta"):
        rebuilt = kind(head.hidden_dim, head.feature_dim, **{**head.init_args, **read})
    for name in read:
        setattr(head, name, getattr(rebuilt, name))
    object.__setattr__(head, "init_args", dict(rebuilt.init_args))


@contextmanager
def changed_head(head: GenerationHead, values: Mapping[str, Any]) -> Iterator[None]:
    """Let a head sample with other settings within the block; see `set_sampling`."""
    before = sampling_of(head)
    set_sampling(head, values)
    try:
        yield
    finally:
        set_sampling(head, {name: before[name] for name in values})


@contextmanager
def changed_objective(owner: HasObjective, values: Mapping[str, Any]) -> Iterator[None]:
    """Let a de-tokenizer sample with other settings of its objective within the block.

    Args:
        owner: Has the objective.
        values: Settings by name; the objective's class checks them.

    Raises:
        UserError: The objective has no such setting, or refuses the value.
    """
    before = owner.objective
    _refuse_unknown(before, values)
    if values:
        owner.objective = type(before)(**{**before.init_args, **values})
    try:
        yield
    finally:
        owner.objective = before


def _refuse_unknown(part: GenerationHead | Objective, values: Mapping[str, Any]) -> None:
    present = sampling_of(part)
    if unknown := [name for name in values if name not in present]:
        known = ", ".join(f"{name} ({value})" for name, value in present.items()) or "none"
        raise UserError(f"{type(part).__name__} has no sampling setting {', '.join(unknown)}; it has: {known}")


def _read(kind: type[GenerationHead], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to the types that a head's `__init__` declares."""
    from jsonargparse import ArgumentError, ArgumentParser  # not above: most calls change nothing

    try:
        hints = get_type_hints(kind.__init__)
    except NameError:  # a type that is imported for type checkers only
        hints = {}
    parser = ArgumentParser(exit_on_error=False)
    for name in values:
        parser.add_argument(f"--{name}", type=hints.get(name, Any))
    try:
        found = parser.parse_object(dict(values))
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{kind.__name__} cannot take {dict(values)} for sampling: {reason[:300]}") from error
    return {name: found[name] for name in values}
