"""Format the numbers of a report, and read its curves. No torch in here."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.experiments.report.content import Line
from divot_lightning.training.run_folder import METRICS


def spread_of(values: Sequence[float], decimals: int = 2) -> str:
    """Format the range of values; digits as in `number`.

    >>> spread_of([0.5, 0.75])
    '0.50 to 0.75'
    """
    return f"{number(min(values), decimals)} to {number(max(values), decimals)}"


def number(value: float, decimals: int = 2) -> str:
    """Format a score with two to three significant digits.

    Args:
        value: The score.
        decimals: Digits behind the point of values below 1.

    >>> number(0.973), number(21.63), number(612.2), number(float("nan"))
    ('0.97', '21.6', '612', '-')
    """
    if math.isnan(value):
        return "-"
    size = abs(value)
    digits = decimals if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:.{digits}f}"


def read_curve(run: Path, column: str, name: str) -> Line:
    """Return a column of a run's metrics.csv as a curve, without points if the column was not logged.

    Args:
        run: The run folder.
        column: Such as `train/loss`.
        name: Of the curve.
    """
    path = run / METRICS
    if not path.is_file():
        return Line(name, [], [])
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["step"], row.get(column)) for row in csv.DictReader(file)]
    points = [(float(step), float(value)) for step, value in rows if value]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return Line(name, [step for step, _ in finite], [value for _, value in finite])
