"""A cache of decoded samples in memory, so that later passes over a small data set need no decoding."""

from dataclasses import replace
from typing import Any

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.shared_memory import tensors_of, without_repeats

SampleId = tuple[str, int, int, int]
"""Name of the split, and the indices of source, shard and sample: the same in every pass."""


class DecodedCache:
    """Keeps decoded samples, as many as fit.

    Token sequences are not kept: each pass samples a task anew.

    A sample is kept only if each pass decodes the same clip of it. Of a long video each pass decodes another part.

    Args:
        max_bytes: Memory for the media.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._kept: dict[SampleId, Sample] = {}

    def add(self, sample_id: SampleId, sample: Sample) -> None:
        """Keep a copy of a sample if it is the same in each pass, and fits."""
        tensors = tensors_of(sample)
        size = sum(without_repeats(tensor).nbytes for tensor in tensors.values())
        if not sample.is_deterministic or sample_id in self._kept or size > self._left:
            return
        self._left -= size
        copies: dict[str, Any] = {
            name: without_repeats(tensor).clone().expand(tensor.shape) for name, tensor in tensors.items()
        }
        self._kept[sample_id] = replace(sample, **copies, sequences=None)

    def get(self, sample_id: SampleId) -> Sample | None:
        """Return a kept sample, or None."""
        return self._kept.get(sample_id)
