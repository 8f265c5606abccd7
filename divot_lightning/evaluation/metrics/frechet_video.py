"""The Frechet distance of clips as a metric of benchmarks: over a network's features, and over the toy features.

Shape letters: N clips, K features.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from divot_lightning.evaluation.metrics.frechet import feature_distance
from divot_lightning.evaluation.metrics.toy_features import toy_clip_features
from divot_lightning.evaluation.metrics.video_features import load_video_features
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import JoinedMetric, Measured

TOY_FEATURES = "fixed toy features, scaled by their deviation over the real clips"


class _ClipDistance(JoinedMetric):
    """Frechet distance between clips and their originals; NaN for fewer than two clips.

    Attributes:
        entry: Name of a clip's features in its line of predictions.jsonl; its original's begin with `real_`.
        scaled: Whether features are scaled, see `feature_distance`.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"
    higher_is_better = False
    best: ClassVar[float] = 0.0
    entry: ClassVar[str]
    scaled: ClassVar[bool]
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A process without a clip does not know the number of features.
        self.add_state("width", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add clips."""
        rows = [[*entry[f"real_{self.entry}"], *entry[self.entry]] for entry in measured]
        if rows:
            self.width = self.width.new_tensor(len(rows[0]) // 2)
            self.add(torch.tensor(rows, dtype=torch.float64))

    def pairs(self) -> Tensor:
        """Return the features of originals and clips, (N, 2, K)."""
        return self.joined().view(-1, 2, max(1, int(self.width)))

    def distance(self) -> Tensor:
        """Return the distance, scalar float64."""
        pairs_N2K = self.pairs()
        return feature_distance(pairs_N2K[:, 0], pairs_N2K[:, 1], scaled=self.scaled)


class FrechetVideoDistance(_ClipDistance):
    """Frechet video distance (Unterthiner et al. 2018) in the features of a network.

    Args:
        network: TorchScript file or `package.module:name`, see `load_video_features`.
        options: Arguments of the network.
        device: Where it runs.
    """

    entry: ClassVar[str] = "features"
    scaled: ClassVar[bool] = False

    def __init__(self, network: str, options: dict[str, Any] | None = None, device: str = "cpu") -> None:
        super().__init__()
        self.network = load_video_features(network, options=options, device=device)

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return the features of a clip and of its original."""
        clip, original = (self.network(video[None])[0].tolist() for video in _videos(prediction))
        return {"features": clip, "real_features": original}

    def compute(self) -> dict[str, Tensor]:
        """Return the distance, and the fraction of clips with features that are not finite."""
        finite_N = self.pairs().isfinite().flatten(1).all(dim=1)
        return {"frechet_video_distance": self.distance(), "non_finite_features": (~finite_N).double().mean()}

    def describe(self) -> dict[str, Any]:
        """Return name and hash of the network."""
        return {"video_features": self.network.source}


class ToyFrechet(_ClipDistance):
    """Frechet distance of toy clips in the fixed toy features."""

    entry: ClassVar[str] = "toy_features"
    scaled: ClassVar[bool] = True

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return the features of a clip and of its original."""
        clip, original = (toy_clip_features(video[None])[0].tolist() for video in _videos(prediction))
        return {"toy_features": clip, "real_toy_features": original}

    def compute(self) -> dict[str, Tensor]:
        """Return the distance."""
        return {"frechet": self.distance()}

    def describe(self) -> dict[str, Any]:
        """Return the space of the distance."""
        return {"toy_features": TOY_FEATURES}


def _videos(prediction: Prediction) -> tuple[Tensor, Tensor]:
    assert prediction.clip is not None
    assert prediction.original is not None
    return prediction.clip, prediction.original
