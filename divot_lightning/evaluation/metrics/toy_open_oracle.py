"""Score toy clips of captions that leave attributes open: what is named must be right, the rest spread as in the data.

Shape letters: N clips, M clips of one caption, A attributes (four), V values of an attribute.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divot_datamodules.toy.open_captions import value_probabilities
from divot_datamodules.toy.world import ATTRIBUTES, VALUES
from divot_lightning.evaluation.metrics.toy_oracle import ORACLE_RULE, OracleMetric, start_spread
from divot_lightning.parts.benchmarks import BenchmarkItem
from divot_lightning.parts.metrics import Measured

OPEN = -1
"""Stands for the value of an attribute that a caption does not name, or that the oracle cannot read."""
Numbers = NDArray[np.float64]


class ToyOpenOracle(OracleMetric):
    """Whether clips show what their captions name, and are as different as the data where captions name nothing.

    An item's `facts["named"]` has the named attributes. The scores:

    - `named`: fraction of clips that are valid and show all that is named; `named_K` of captions that name K
      attributes (of those with 0 it is the fraction that is valid), and each attribute where it is named.
    - `valid`: fraction of clips that the oracle can read.
    - `total_variation`: half the sum of the absolute differences between the frequencies of an attribute's values, over
      valid clips whose captions do not name it, and their probabilities given the captions; 0 is best. By attribute,
      and their mean. A sample of the data itself does not reach 0: with N clips and V values about
      sqrt((V - 1) / (2 pi N)) is expected.
    - `variety`: how often two valid clips of one caption differ in an attribute that it does not name, relative to the
      data; 1 is that of the data. A model that has one answer per caption has 0, whatever its total variation is.
    - `spread`: of the start positions within a caption, relative to real clips, as in `ToyOracle`.
    """

    def row(self, reading: Mapping[str, Any], facts: Mapping[str, Any]) -> list[float]:
        """Return the named values, the values that were read, the start and the true start."""
        named, start = facts["named"], reading["start"] if reading["valid"] else (math.nan, math.nan)
        read = [float(VALUES[name].index(reading[name])) if reading["valid"] else OPEN for name in ATTRIBUTES]
        named_A = [float(VALUES[name].index(named[name])) if name in named else OPEN for name in ATTRIBUTES]
        return [*named_A, *read, *start, *facts["start"]]

    def compute(self) -> dict[str, Tensor]:
        """Return the scores, scalars in float64; NaN where no clip counts."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, (value, _) in self._scores().items()}

    def counts(self) -> dict[str, int]:
        """Return how many clips count in each score."""
        return {name: count for name, (_, count) in self._scores().items()}

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return for each clip the scores that are means over clips, where it counts."""
        return [_means(self.row(entry["reading"], item.facts)) for entry, item in zip(measured, items, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return the rules."""
        return {"oracle": ORACLE_RULE, "open": "frequencies, variety and spread are of valid clips"}

    def _scores(self) -> dict[str, tuple[float, int]]:
        """Return value and number of clips of every score."""
        table_NX = self.joined().view(-1, 2 * len(ATTRIBUTES) + 4).numpy()
        means = [_means(row) for row in table_NX]
        names = ("named", "valid", *ATTRIBUTES, *(f"named_{count}" for count in range(len(ATTRIBUTES), -1, -1)))
        scores = {name: _mean([row[name] for row in means if name in row]) for name in names}
        named_NA, read_NA, starts_N2, truths_N2 = np.split(table_NX, [4, 8, 10], axis=1)
        distances = {name: _total_variation(named_NA, read_NA, name) for name in ATTRIBUTES}
        scores["total_variation"] = (
            fmean(value for value, _ in distances.values()),
            int(((named_NA == OPEN).any(axis=1) & (read_NA[:, 0] != OPEN)).sum()),
        )
        scores |= {f"total_variation_{name}": found for name, found in distances.items()}
        scores["variety"] = _variety(named_NA, read_NA)
        captions = [tuple(row) for row in named_NA]
        spread, counted = start_spread(starts_N2.tolist(), captions)
        real = start_spread(truths_N2.tolist(), captions)[0]
        return scores | {"spread": (spread / real if real else math.nan, counted)}


def _means(row: Sequence[float]) -> dict[str, float]:
    """Return of one clip the scores that are means over clips."""
    named_A, read = row[: len(ATTRIBUTES)], row[len(ATTRIBUTES) : 2 * len(ATTRIBUTES)]
    valid = float(read[0] != OPEN)
    right = {n: float(a == b) for n, a, b in zip(ATTRIBUTES, named_A, read, strict=True) if a != OPEN}
    named = valid * float(all(right.values()))
    return {"named": named, "valid": valid, **right, f"named_{len(right)}": named}


def _mean(values: Sequence[float]) -> tuple[float, int]:
    return (fmean(values) if values else math.nan), len(values)


def _probabilities(named_A: Numbers, attribute: str) -> Numbers:
    """Return the probabilities of an attribute's values given a caption, (V,)."""
    named = {name: VALUES[name][int(at)] for name, at in zip(ATTRIBUTES, named_A, strict=True) if at != OPEN}
    return np.array(value_probabilities(named, attribute))


def _total_variation(named_NA: Numbers, read_NA: Numbers, attribute: str) -> tuple[float, int]:
    """Return the distance between an attribute's frequencies and probabilities, and how many clips counted."""
    at = ATTRIBUTES.index(attribute)
    counted_N = (named_NA[:, at] == OPEN) & (read_NA[:, at] != OPEN)
    if not counted_N.any():
        return math.nan, 0
    expected_V = np.mean([_probabilities(named_A, attribute) for named_A in named_NA[counted_N]], axis=0)
    frequencies_V = np.bincount(read_NA[counted_N, at].astype(int), minlength=len(expected_V)) / counted_N.sum()
    return float(np.abs(frequencies_V - expected_V).sum() / 2), int(counted_N.sum())


def _variety(named_NA: Numbers, read_NA: Numbers) -> tuple[float, int]:
    """Return how often pairs of valid clips of a caption differ, relative to the data, and how many clips counted.

    A caption with M valid clips has the weight M - 1 in both means, as in a pooled variance.
    """
    found = expected = 0.0
    counted = 0
    for named_A in np.unique(named_NA, axis=0):
        same_MA = read_NA[(named_NA == named_A).all(axis=1) & (read_NA[:, 0] != OPEN)]
        if len(same_MA) < 2 or OPEN not in named_A:
            continue
        counted += len(same_MA)
        for at in np.flatnonzero(named_A == OPEN):
            frequencies_V = np.bincount(same_MA[:, at].astype(int)) / len(same_MA)
            # Pairs of different clips, so the pooled frequencies' own pairs are left out: M / (M - 1).
            found += len(same_MA) * (1 - (frequencies_V**2).sum())
            expected += (len(same_MA) - 1) * (1 - (_probabilities(named_A, ATTRIBUTES[at]) ** 2).sum())
    return (found / expected if expected else math.nan), counted
