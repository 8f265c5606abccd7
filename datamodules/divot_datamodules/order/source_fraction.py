"""A share of a source's samples, the same for every seed, so that ablations can vary the amount of data."""

import hashlib

import numpy as np

from divot_datamodules.shards.reading import RawSample
from divot_datamodules.shards.sources import SampleSource

_SEED = 241204432
"""The number of the paper, arXiv:2412.04432. Decides which samples make up a share; a constant, so that runs with other
seeds train on the same ones."""


class SourceFraction:
    """Some of a source's samples, drawn evenly over all of it; see `divot_datamodules.shards.sources.SampleSource`.

    A smaller share is part of every larger one, so that more data means the same data and more.

    Args:
        whole: The source.
        share: Of its samples, above 0 and at most 1; at least one sample is kept.
    """

    def __init__(self, whole: SampleSource, share: float) -> None:
        assert 0 < share <= 1
        ends = np.cumsum(whole.counts, dtype=np.int64)
        size = int(ends[-1])
        drawn = np.random.default_rng(_SEED).permutation(size)[: max(1, round(share * size))]
        starts = ends - np.array(whole.counts, dtype=np.int64)
        drawn.sort()
        # By unit, the places of the samples that are kept.
        cuts = np.searchsorted(drawn, ends)
        self._places = [part - start for part, start in zip(np.split(drawn, cuts[:-1]), starts, strict=True)]
        self._whole = whole
        self.counts = tuple(len(places) for places in self._places)
        self.skipped = whole.skipped
        self.fingerprint = hashlib.sha256(f"{whole.fingerprint} {len(drawn)}".encode()).hexdigest()

    @property
    def content(self) -> str:
        """That of the whole source."""
        return self._whole.content

    def shard_path(self, unit: int) -> str:
        """Return path or URL of a unit."""
        return self._whole.shard_path(unit)

    def key(self, unit: int, sample: int) -> str:
        """Return a sample's key."""
        return self._whole.key(unit, int(self._places[unit][sample]))

    def read(self, unit: int, sample: int) -> RawSample:
        """Read one sample; see `divot_datamodules.shards.sources.SampleSource.read`."""
        return self._whole.read(unit, int(self._places[unit][sample]))
