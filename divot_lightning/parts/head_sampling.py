"""Change how a trained head samples: guidance, steps, variances or any other setting that its class declares."""

from collections.abc import Mapping
from typing import Any, get_type_hints

import torch

from divot_lightning.errors import UserError
from divot_lightning.parts.heads import GenerationHead


def sampling_of(head: GenerationHead) -> dict[str, Any]:
    """Return the present sampling settings of a head, as JSON values."""
    # A subclass may fix a setting that its base class declares; it then has no setting of that name.
    return {name: head.init_args[name] for name in head.sampling_settings if name in head.init_args}


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
    present = sampling_of(head)
    unknown = [name for name in values if name not in present]
    if unknown:
        known = ", ".join(f"{name} ({value})" for name, value in present.items())
        raise UserError(
            f"{kind.__name__} has no sampling setting {', '.join(unknown)}; "
            + (f"it has, with their present values: {known}" if known else "it has none besides the temperature")
        )
    read = _read(kind, values)
    # A copy on the meta device, which needs no memory: its class checks the values and may convert them.
    with torch.device("meta"):
        rebuilt = kind(head.hidden_dim, head.feature_dim, **{**head.init_args, **read})
    for name in read:
        setattr(head, name, getattr(rebuilt, name))
    object.__setattr__(head, "init_args", dict(rebuilt.init_args))


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
