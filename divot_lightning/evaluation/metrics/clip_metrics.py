"""Measure one generated clip, and the real clip that it belongs to, with the metrics of an evaluation.

Shape letters: F frames, H height, W width.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from divot_lightning.evaluation.config import GenerationConfig
from divot_lightning.evaluation.metrics.clip_similarity import ClipTextSimilarity
from divot_lightning.evaluation.metrics.toy_features import toy_clip_features
from divot_lightning.evaluation.metrics.toy_oracle import read_clips
from divot_lightning.evaluation.metrics.video_features import VideoFeatures, load_video_features
from divot_lightning.evaluation.predictions import Row
from divot_lightning.evaluation.protocol import folder_sha256

TOY_FEATURES = "fixed toy features, scaled by their deviation over the real clips"
MEASURED_BY = "measured_by"
"""Entry of a row: for each metric a digest of the network that measured it."""


class ClipMetrics:
    """The metrics of an evaluation. Their networks are loaded at once, so that a wrong one is reported first.

    Args:
        chosen: The metrics.
        toy: Whether the clips are those of the toy world.
        device: Where the networks run.
    """

    def __init__(self, chosen: GenerationConfig, toy: bool, device: str) -> None:
        self.similarity = ClipTextSimilarity(chosen.clip_model, device) if chosen.clip_model else None
        self.features: VideoFeatures | None = None
        if chosen.video_features:
            options = chosen.video_feature_options
            self.features = load_video_features(chosen.video_features, options=options, device=device)
        self.described: dict[str, Any] = {}
        if chosen.clip_model:
            name = Path(chosen.clip_model).name
            self.described["clip_model"] = {"name": name, "sha256": folder_sha256(chosen.clip_model)}
        if self.features is not None:
            self.described["video_features"] = self.features.source
        if toy:
            self.described["toy_features"] = TOY_FEATURES
        self._digests = {name: _digest(value) for name, value in self.described.items()}

    def missing(self, row: Row) -> list[str]:
        """Return the metrics that a row lacks, or has from another network."""
        by = row.get(MEASURED_BY, {})
        return [name for name, digest in self._digests.items() if by.get(name) != digest]

    def measure(self, generated_1FCHW: Tensor, real_1FCHW: Tensor, prompt: str, names: Collection[str]) -> Row:
        """Measure a clip by the metrics `names`, which `missing` returned. Clips are uint8 (1, F, 3, H, W)."""
        measured: Row = {}
        if "clip_model" in names and self.similarity is not None:
            measured["clip_similarity"] = self.similarity(generated_1FCHW, [prompt]).item()
        if "video_features" in names and self.features is not None:
            measured["features"] = self.features(generated_1FCHW)[0].tolist()
            measured["real_features"] = self.features(real_1FCHW)[0].tolist()
        if "toy_features" in names:
            measured["reading"] = asdict(read_clips(generated_1FCHW)[0])
            measured["toy_features"] = toy_clip_features(generated_1FCHW)[0].tolist()
            measured["real_toy_features"] = toy_clip_features(real_1FCHW)[0].tolist()
        return {**measured, MEASURED_BY: {name: self._digests[name] for name in names}}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
