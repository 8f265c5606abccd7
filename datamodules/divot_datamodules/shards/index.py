"""The index of a shard: the byte range of each of its samples, and which samples cannot be used."""

import io
import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from divot_lightning.io.renamed import OLD_SKIPPED

FORMAT = 1
"""Format of the index files."""


class Keys:
    """Many strings in two arrays, which a forked worker reads without copying them.

    >>> keys = Keys.of(["a", "cats/b"])
    >>> len(keys), keys[1]
    (2, 'cats/b')
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, keys: list[str]) -> "Keys":
        """Store a list of strings."""
        parts = [key.encode("utf-8", "surrogateescape") for key in keys]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.text[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")


@dataclass
class ShardIndex:
    """The index of a shard.

    Attributes:
        size: Bytes of the shard.
        stamp: Stamp of the shard when it was indexed; see `divot_datamodules.shards.storage.ShardBytes`.
        ranges: int64 (samples, 2), first byte and byte after the last of each usable sample, headers included.
        keys: Keys of the usable samples.
        skipped: Samples that cannot be used: reason, key ("" for the whole shard) and detail.
    """

    size: int
    stamp: str
    ranges: NDArray[np.int64]
    keys: Keys
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    def broken_off(self, problem: str) -> None:
        """Change the reason of an early end to "broken_off": the rest of the shard could not be fetched."""
        ends = ("not_a_tar", "empty_shard", "cut_in_header", "cut_in_body", "cut_between_members")
        keys = [key for reason, key, _ in self.skipped if reason in ends] or [""]
        others = [sample for sample in self.skipped if sample[0] not in ends]
        self.skipped = [*others, *(("broken_off", key, problem) for key in keys)]

    def to_bytes(self) -> bytes:
        """Return the content of an index file, which `index_from_bytes` reads."""
        facts = {"format": FORMAT, "size": self.size, "stamp": self.stamp, "skipped": self.skipped}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            ranges=self.ranges,
            key_text=self.keys.text,
            key_ends=self.keys.ends,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        )
        return buffer.getvalue()


def no_samples(reason: str, detail: str) -> ShardIndex:
    """Return the index of a shard that cannot be read at all; it contains only the reason."""
    return ShardIndex(0, "", np.zeros((0, 2), np.int64), Keys.of([]), [(reason, "", detail)])


def index_from_bytes(data: bytes) -> ShardIndex | None:
    """Read an index; None if it is damaged or of another format. Nothing in it is unpickled."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("ranges", "key_text", "key_ends", "facts")}
        facts = json.loads(arrays["facts"].tobytes())
        skipped = facts["skipped"] if "skipped" in facts else facts[OLD_SKIPPED]
        index = ShardIndex(
            int(facts["size"]),
            str(facts["stamp"]),
            arrays["ranges"],
            Keys(arrays["key_text"], arrays["key_ends"]),
            [(str(reason), str(key), str(detail)) for reason, key, detail in skipped],
        )
    except Exception:  # a damaged zip, array or json, each with its own exceptions
        return None
    return index if facts["format"] == FORMAT and _is_consistent(index) else None


def _is_consistent(index: ShardIndex) -> bool:
    ranges, ends = index.ranges, index.keys.ends
    return bool(
        ranges.dtype == ends.dtype == np.int64
        and index.keys.text.dtype == np.uint8
        and ranges.shape == (len(ends), 2)
        and (np.diff(ranges.reshape(-1)) >= 0).all()
        and (np.diff(ends, prepend=0) >= 0).all()
        and (not len(ends) or (ranges[0, 0] >= 0 and ranges[-1, 1] <= index.size and ends[-1] == index.keys.text.size))
    )
