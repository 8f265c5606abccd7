"""Measure the published reconstruction of a clip, as a reference beside those of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from divot_datamodules.decoding.video import decode_frames, probe
from divot_lightning.evaluation.metrics.image_quality import PIXEL_RANGE
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import ItemMetric, Measured

PUBLISHED = "published"
"""Entry of an item's facts: the file of its published reconstruction."""


class PublishedReconstruction(ItemMetric):
    """PSNR of published reconstructions, and of clips of one colour, the mean of the original.

    It does not depend on the run: both files are read whole, at the size and with as many frames as the published one.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"
    scores: ClassVar[tuple[str, ...]] = ("published_psnr", "one_colour_psnr")
    best: ClassVar[float] = float("inf")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Compare the published reconstruction with the original, and the original with its mean colour."""
        if PUBLISHED not in item.facts:
            return {}
        file = Path(item.facts[PUBLISHED])
        info = probe(file)
        frames, size = info.num_frames or 1, (info.height, info.width)
        published, original = (_spread_frames(media, frames, size) for media in (file, item.content))
        colour = original.mean(dim=(0, 2, 3), keepdim=True).expand_as(original)
        return {"published_psnr": _psnr(published, original), "one_colour_psnr": _psnr(colour, original)}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add the values of items that have a published reconstruction."""
        pairs = [pair for pair in zip(measured, items, strict=True) if self.scores[0] in pair[0]]
        super().update([values for values, _ in pairs], [item for _, item in pairs])

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return the values themselves; none for items without a published reconstruction."""
        return [{name: values[name] for name in self.scores if name in values} for values in measured]

    def counts(self) -> dict[str, int]:
        """Return how many items have a published reconstruction."""
        return dict.fromkeys(self.scores, int(self.count))

    def describe(self) -> dict[str, Any]:
        """Return the rule."""
        return {"published": "whole clips, frames of the published file and those of the original nearest in time"}


def _spread_frames(media: Path | bytes, count: int, size: tuple[int, int]) -> Tensor:
    """Return frames that are evenly spread over a video, float64 (F, 3, H, W)."""
    duration = probe(media).duration
    moments = [(index + 0.5) * duration / count for index in range(count)]
    return torch.from_numpy(decode_frames(media, moments, size)).double()


def _psnr(clip: Tensor, original: Tensor) -> float:
    return peak_signal_noise_ratio(clip, original, data_range=PIXEL_RANGE).item()
