"""The base of all runners, and of those whose rows hold measurements."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_lightning.evaluation.chosen_items import Numbered
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.io.files import text_sha256
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, Prediction
from divot_lightning.parts.metrics import BenchmarkMetric

MEASURED_BY = "measured_by"
"""Entry of a row: for each metric a digest of what decides its measurements."""


@dataclass(frozen=True)
class Job:
    """What a runner predicts.

    Attributes:
        run: Run folder of a stage with the models that the predictions need.
        config: Of the evaluation.
        benchmark: Says what is asked.
        metrics: Of the benchmark.
        device: Where the models run.
        folder: Of the evaluation.
    """

    run: str | Path
    config: EvaluationConfig
    benchmark: Benchmark
    metrics: Sequence[BenchmarkMetric]
    device: str
    folder: Path


class Runner(ABC):
    """Predict answers, clips, stories or features.

    Args:
        job: What is predicted.

    Attributes:
        components: Names of the run's components that it uses.
        one_seed: Whether all items are predicted together, with one seed.
        sampling_config: Sampling settings that belong to the model, as JSON values.
    """

    components: tuple[str, ...] = ()
    one_seed: bool = False

    def __init__(self, job: Job) -> None:
        self.config, self.benchmark, self.metrics, self.folder = job.config, job.benchmark, job.metrics, job.folder
        self.sampling_config: dict[str, Any] = {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return everything that decides the predictions besides the models, as JSON values."""

    @abstractmethod
    def is_finished(self, row: Row) -> bool:
        """Return whether a row is complete."""

    @abstractmethod
    def run(self, items: Sequence[Numbered], rows: Mapping[str, Row]) -> list[Row]:
        """Return one row per item; `rows` are the earlier rows by item.

        The items are of one video; with one seed, they are all items.
        """


class MeasuringRunner(Runner):
    """Measure what the models make as soon as it is made, so that it need not be stored.

    An item that was measured by all metrics is finished.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.digests = {type(metric).__name__: _digest(metric) for metric in self.metrics}

    def is_finished(self, row: Row) -> bool:
        """Return whether an item was measured by all metrics."""
        return not self._missing(row)

    def measured(self, row: Row, prediction: Prediction, item: BenchmarkItem, before: Row) -> Row:
        """Return the row of an item with the measurements of all metrics; those of an earlier row are not repeated."""
        for metric in self._missing(before):
            row |= metric.measure(prediction, item)
        kept = {name: value for name, value in before.items() if name != "error"}
        return {**kept, **row, MEASURED_BY: {**before.get(MEASURED_BY, {}), **self.digests}}

    def _missing(self, row: Row) -> list[BenchmarkMetric]:
        """Return the metrics that have not measured a row, or did so with another network."""
        by = row.get(MEASURED_BY, {})
        return [metric for metric in self.metrics if by.get(type(metric).__name__) != _digest(metric)]


def _digest(metric: BenchmarkMetric) -> str:
    return text_sha256(json.dumps(metric.describe(), sort_keys=True))[:16]
