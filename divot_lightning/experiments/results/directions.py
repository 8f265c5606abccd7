"""Which values of a score are better: higher, lower, or near a number. No torch in here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from divot_lightning.errors import UserError
from divot_lightning.evaluation.statistics.paired_difference import Values


@dataclass(frozen=True)
class Near:
    """The best value is a number, such as 1 for a spread relative to that of real clips.

    Attributes:
        near: The number.
    """

    near: float


Better: TypeAlias = Literal["higher", "lower"] | Near


def parse_better(name: str, given: Any) -> Better:
    """Read which values of a score are better: `higher`, `lower` or `{near: 1}`.

    Args:
        name: Of the score.
        given: As YAML gives it.

    Raises:
        UserError: It is none of these.

    >>> parse_better("generation/spread", {"near": 1})
    Near(near=1.0)
    """
    if given in ("higher", "lower"):
        return "higher" if given == "higher" else "lower"
    if isinstance(given, Mapping) and set(given) == {"near"}:
        number = given["near"]
        if isinstance(number, int | float) and not isinstance(number, bool):
            return Near(float(number))
    raise UserError(f"the score {name!r} has {given!r}; give which values are better: higher, lower or {{near: 1}}.")


def heading(better: Better) -> str:
    """Return the words in a column's heading for what is better.

    >>> heading("higher"), heading("lower"), heading(Near(1.0))
    ('up', 'down', 'near 1')
    """
    if isinstance(better, Near):
        return f"near {better.near:g}"
    return {"higher": "up", "lower": "down"}[better]


def compared(better: Better, values: Values) -> Values:
    """Return the values to compare: a score's own values, or their distances to the best value."""
    return np.abs(values - better.near) if isinstance(better, Near) else values


def is_gain(better: Better, difference: float) -> bool:
    """Return whether a difference of compared values is an improvement."""
    return difference > 0 if better == "higher" else difference < 0
