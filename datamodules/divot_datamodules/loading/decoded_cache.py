"""Decoded samples that stay in memory, so that later passes over a small set need no decoding."""

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.shared_memory import without_repeats

SampleId = tuple[str, int, int, int]
"""Data, source, unit, sample."""


class DecodedCache:
    """Keeps samples as long as they fit.

    Only samples without a choice of clip are kept: a random part of a long video is decoded anew in each pass.

    Args:
        max_bytes: Memory for the media.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._kept: dict[SampleId, Sample] = {}

    def add(self, place: SampleId, sample: Sample) -> None:
        """Keep a copy of a sample if it may be kept and fits."""
        values = {field.name: getattr(sample, field.name) for field in fields(sample)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        size = sum(without_repeats(tensor).nbytes for tensor in tensors.values())
        if not sample.is_deterministic or place in self._kept or size > self._left:
            return
        self._left -= size
        copies: dict[str, Any] = {
            name: without_repeats(tensor).clone().expand(tensor.shape) for name, tensor in tensors.items()
        }
        self._kept[place] = replace(sample, **copies)

    def get(self, place: SampleId) -> Sample | None:
        """Return a kept sample."""
        return self._kept.get(place)
