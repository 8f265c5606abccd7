"""Measure what models make of clips as soon as it is made, so that it need not be stored; here, their features.

Shape letters: F frames, H height, W width, Q tokens per clip, C feature width.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from divot_datamodules.decoding.cached_features import read_features
from divot_datamodules.decoding.video import DecodeError
from divot_lightning.checkpoint.components import find_component, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.evaluation.chosen_items import Numbered
from divot_lightning.evaluation.item_media import read_middle_clip
from divot_lightning.evaluation.predictions import Row
from divot_lightning.evaluation.question_runner import describe_resize
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import BenchmarkMetric
from divot_lightning.parts.sources import SampleError

MEASURED_BY = "measured_by"
"""Entry of a row: for each metric a digest of what decides its measurements."""


class MeasuringRunner(ABC):
    """Base of runners whose rows hold measurements.

    Args:
        metrics: Of the benchmark; an item that was measured by all of them is finished.

    Attributes:
        components: Names of the run's components that it uses.
        one_seed: Whether all items are predicted together, with one seed.
        sampling_config: Sampling settings that belong to the model, as JSON values.
    """

    components: tuple[str, ...]
    one_seed: bool = False

    def __init__(self, metrics: Sequence[BenchmarkMetric]) -> None:
        self.metrics = metrics
        self.sampling_config: dict[str, Any] = {}
        self.digests = {type(metric).__name__: _digest(metric) for metric in metrics}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return everything that decides the predictions besides the models, as JSON values."""

    @abstractmethod
    def run(self, items: Sequence[Numbered], rows: Mapping[str, Row]) -> list[Row]:
        """Return one row per item; `rows` are the earlier rows by item."""

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


class FeatureRunner(MeasuringRunner):
    """Encode the middle clip of each video, or read cached features of the same tokenizer.

    Args:
        run: Run folder of a stage that trains or uses a tokenizer.
        metrics: Of the benchmark.
        device: Where the tokenizer runs.
    """

    components: tuple[str, ...] = ("tokenizer",)

    def __init__(self, run: str | Path, metrics: Sequence[BenchmarkMetric], device: str) -> None:
        super().__init__(metrics)
        self.models = LoadedRun(run, device=device)
        self.tokenizer_sha256 = weights_sha256(find_component(run, "tokenizer"))

    def describe(self) -> dict[str, Any]:
        """Return which clips are encoded."""
        clip = self.models.clip
        return {
            "clips": {"frames": clip.frames, "fps": clip.fps, "height": clip.height, "width": clip.width},
            "real_clips": f"the middle {clip.seconds:g} s of each video; {describe_resize(clip)}",
        }

    def run(self, items: Sequence[Numbered], rows: Mapping[str, Row]) -> list[Row]:
        """Measure the features of each item; one whose video cannot be decoded has an `error` instead."""
        found = []
        for _, item in items:
            row: Row = {"id": item.id, "media": item.media_name}
            try:
                prediction = Prediction(features=self._features(item))
            except DecodeError as error:
                found.append({**row, "error": str(error)})
                continue
            found.append(self.measured(row, prediction, item, rows.get(item.id, {})))
        return found

    def _features(self, item: BenchmarkItem) -> Tensor:
        """Return the features of an item, float32 (Q, C).

        Raises:
            UserError: Cached features are damaged, of another tokenizer, or of several clips.
        """
        if not item.is_features:
            clip_FCHW = read_middle_clip(item, self.models.clip)
            return self.models.encode(clip_FCHW[None])[0]
        content = item.content
        try:
            stored = content if isinstance(content, bytes) else content.read_bytes()
            features_NQC = read_features(stored, self.tokenizer_sha256)
        except SampleError as error:
            raise UserError(f"features of {item.media_name}: {error}\nMake them: divot data encode") from error
        if len(features_NQC) != 1:
            raise UserError(f"{item.media_name} has features of {len(features_NQC)} clips; this measures single clips")
        return features_NQC[0]


def _digest(metric: BenchmarkMetric) -> str:
    return hashlib.sha256(json.dumps(metric.describe(), sort_keys=True).encode()).hexdigest()[:16]
