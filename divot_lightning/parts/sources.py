"""The base class of data sources, and what they exchange with the data module: samples, and samples that are skipped.

No torch in here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from divot_lightning.parts.part import Part


class SampleError(Exception):
    """A sample cannot be used.

    Attributes:
        reason: Short fixed name, such as "missing_caption"; skipped samples are counted by it.
        detail: What is wrong, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class SkippedSample:
    """One sample, or one whole shard, that could not be used.

    Attributes:
        reason: A short fixed name, such as "too_short"; samples are counted by it.
        shard: Path or URL.
        key: The sample's key; "" for a whole shard.
        detail: What is wrong, for people.
    """

    reason: str
    shard: str
    key: str
    detail: str = ""


@dataclass
class RawSample:
    """A sample as it is stored.

    Attributes:
        key: Name of the sample in its shard.
        shard: Path or URL of the shard.
        number: Index of the sample in the shard.
        members: Contents by suffix: bytes, or the absolute `Path` of a local file. A media suffix such as "mp4" or
            "jpg" ("clip0.mp4", "clip1.mp4", ... if there are several in order) or "features.safetensors"; and "json",
            an object with the texts, or "txt", a caption.
    """

    key: str
    shard: str
    number: int
    members: dict[str, bytes | Path] = field(default_factory=dict)


class Source(Part, ABC):
    """Samples that can be read in any order, so that the order of training can be computed before anything is read.

    A source is a list of shards (files, tables, folders), and a shard a list of samples; a source without parts has one
    shard. Training reads the samples of a shard mostly in sequence. `__init__` opens the source: it finds out how many
    samples there are, and raises a `UserError` if there is none. Its arguments are the settings that a recipe gives;
    `index_folder` is a folder (or None) that the suite supplies by name, in which the source may store what takes long
    to find out.

    A source is made in the training process and read in forked workers: keep no file open from one call to the next.
    Each process opens the source by itself, and all must find the same samples.

    Attributes:
        counts: Usable samples of each shard; 0 for a shard that cannot be read.
        fingerprint: Hash of what identifies the samples (names without folders, sizes, keys): equal for equal data
            and, as far as possible, other for other data. A run is resumed only if it is equal.
        skipped: Samples and shards that were found to be unusable when the source was opened; they are not in `counts`.
    """

    supplied_args: ClassVar[tuple[str, ...]] = ("index_folder",)
    counts: tuple[int, ...]
    fingerprint: str
    skipped: Sequence[SkippedSample] = ()

    @property
    def content(self) -> str:
        """Hash of (parts of) the samples' content, compared when a run is resumed; "" where nothing is known."""
        return ""

    @property
    def num_bytes(self) -> int | None:
        """Bytes of all shards; None where it is not known."""
        return None

    @abstractmethod
    def shard_path(self, shard: int) -> str:
        """Return path or URL of a shard, for reports."""

    def key(self, shard: int, sample: int) -> str:
        """Return a sample's key, unique in its shard, without reading the sample; by default its index."""
        return str(sample)

    @abstractmethod
    def read(self, shard: int, sample: int) -> RawSample:
        """Read one sample.

        Args:
            shard: Index of the shard, from 0 to `len(counts) - 1`.
            sample: Index of the sample in it, from 0 to `counts[shard] - 1`.

        Raises:
            SampleError: It cannot be read, or is no longer the sample that was there when the source was opened
                ("shard_changed"). The sample is recorded and skipped; any other error ends the run.
        """
