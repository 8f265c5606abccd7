"""Change how an objective samples for a while: stochasticity, spacing of the steps, or what else its class declares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from divot_lightning.errors import UserError
from divot_lightning.parts.objectives import Objective


class HasObjective(Protocol):
    """A de-tokenizer, or whatever else samples with an objective."""

    objective: Objective


def sampler_of(objective: Objective) -> dict[str, Any]:
    """Return the present sampling settings of an objective, as JSON values."""
    return {name: objective.init_args[name] for name in objective.sampling_settings if name in objective.init_args}


@contextmanager
def changed_sampler(owner: HasObjective, values: Mapping[str, Any]) -> Iterator[None]:
    """Let `owner` sample with other settings within the block.

    Args:
        owner: Has the objective.
        values: Settings by name; its class checks them.

    Raises:
        UserError: The objective has no such setting, or refuses the value.
    """
    before = owner.objective
    present = sampler_of(before)
    unknown = [name for name in values if name not in present]
    if unknown:
        known = ", ".join(f"{name} ({value})" for name, value in present.items()) or "none"
        raise UserError(f"{type(before).__name__} has no sampling setting {', '.join(unknown)}; it has: {known}")
    if values:
        owner.objective = type(before)(**{**before.init_args, **values})
    try:
        yield
    finally:
        owner.objective = before
