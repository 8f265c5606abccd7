"""Measure the features that a run's tokenizer makes of clips.

Shape letters: F frames, H height, W width, Q tokens per clip, C feature width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from divot_datamodules.decoding.cached_features import read_features
from divot_datamodules.decoding.video import DecodeError
from divot_lightning.checkpoint.run_components import find_component, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.evaluation.chosen_items import Numbered
from divot_lightning.evaluation.item_media import read_middle_clip
from divot_lightning.evaluation.runners.described_clips import describe_middle_clips
from divot_lightning.evaluation.runners.runner import Job, MeasuringRunner
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.sources import SampleError


class FeatureRunner(MeasuringRunner):
    """Encode the middle clip of each video, or read cached features of the same tokenizer."""

    components: tuple[str, ...] = ("tokenizer",)

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.models = LoadedRun(job.run, device=job.device)
        self.tokenizer_sha256 = weights_sha256(find_component(job.run, "tokenizer"))

    def describe(self) -> dict[str, Any]:
        """Return which clips are encoded."""
        return describe_middle_clips(self.models.clip)

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
