"""A fraction of a source's samples, the same for every seed, so that ablations can vary the amount of data."""

import numpy as np

from divot_lightning.io.files import text_sha256
from divot_lightning.parts.sources import RawSample, Source

_SEED = 241204432
"""The paper's number, arXiv:2412.04432. It decides which samples are kept, and is a constant, so that runs with
different seeds train on the same samples."""


class SourceFraction(Source):
    """A random fraction of a source's samples.

    A smaller fraction is a subset of every larger one, so that more data means the same data and more.

    Args:
        whole: The source.
        fraction: Of its samples, above 0 and at most 1; at least one sample is kept.
    """

    supplied_args = ("whole",)

    def __init__(self, whole: Source, fraction: float) -> None:
        assert 0 < fraction <= 1
        ends = np.cumsum(whole.counts, dtype=np.int64)
        size = int(ends[-1])
        kept = np.random.default_rng(_SEED).permutation(size)[: max(1, round(fraction * size))]
        starts = ends - np.array(whole.counts, dtype=np.int64)
        kept.sort()
        # For each shard, the indices of the samples that are kept.
        cuts = np.searchsorted(kept, ends)
        self._kept = [part - start for part, start in zip(np.split(kept, cuts[:-1]), starts, strict=True)]
        self._whole = whole
        self.counts = tuple(len(indices) for indices in self._kept)
        self.skipped = whole.skipped
        self.fingerprint = text_sha256(f"{whole.fingerprint} {len(kept)}")

    @property
    def content(self) -> str:
        """Hash of the content of the whole source."""
        return self._whole.content

    def shard_path(self, shard: int) -> str:
        """Return path or URL of a shard."""
        return self._whole.shard_path(shard)

    def key(self, shard: int, sample: int) -> str:
        """Return a sample's key."""
        return self._whole.key(shard, int(self._kept[shard][sample]))

    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample; see `Source.read`."""
        return self._whole.read(shard, int(self._kept[shard][sample]))
