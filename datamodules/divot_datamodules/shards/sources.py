"""Where samples come from: any sample of any shard or jsonl can be read by its place, so that an order can be planned.

A unit is a shard or a jsonl file. Sources are made in the training process and used in forked workers: they hold no
open file over a fork, and what they know of the samples lies in few arrays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from divot_datamodules.loading.skipped_samples import SkippedSample
from divot_datamodules.shards.jsonl_source import JsonlSource, MediaFrom
from divot_datamodules.shards.reading import RawSample, expand_shards, is_url
from divot_datamodules.shards.tar_source import TarSource
from divot_lightning.errors import UserError

__all__ = ["JsonlSource", "SampleSource", "TarSource", "estimate_losses", "find_jsonl", "open_source"]


class SampleSource(Protocol):
    """Samples that can be read in any order.

    Ranks index by themselves; they agree on the order only if their fingerprints are equal, so compare these. With a
    shared `index_folder`, let one rank open the source first: the others then find the index there.

    Attributes:
        counts: Usable samples per unit; 0 for a unit that cannot be read.
        skipped: What indexing found: shards that are missing or cut, members that lie apart, and so on. Samples named
            here are not among the usable ones.
        fingerprint: Hash of the units' names (without folders), sizes, keys and places; equal for equal data.
    """

    counts: tuple[int, ...]
    skipped: list[SkippedSample]
    fingerprint: str

    @property
    def content(self) -> str:
        """Hash of parts of the units' content, see `divot_datamodules.shards.content`; "" where nothing is known."""
        ...

    def shard_path(self, unit: int) -> str:
        """Return path or URL of a unit, as ledger entries name it."""
        ...

    def key(self, unit: int, sample: int) -> str:
        """Return a sample's key without reading the sample."""
        ...

    def read(self, unit: int, sample: int) -> RawSample:
        """Read exactly one sample's bytes.

        Args:
            unit: Number of the unit.
            sample: SampleId among the unit's usable samples, from 0 to `counts[unit] - 1`.

        Raises:
            divot_datamodules.decoding.samples.SampleError: It cannot be read, such as "missing_shard", "shard_changed".
        """
        ...


def estimate_losses(source: SampleSource) -> int:
    """Estimate how many samples indexing found to be lost.

    A unit that gives nothing counts as many as the others hold on average; of a unit that gives something each defect
    counts one.
    """
    named = {source.shard_path(unit) for unit, count in enumerate(source.counts) if not count}
    empty = named & {defect.shard for defect in source.skipped}
    readable = len(source.counts) - len(named)
    each = max(1, round(sum(source.counts) / readable)) if readable else 1
    return each * len(empty) + sum(defect.shard not in empty for defect in source.skipped)


def open_source(
    path: str | Path | Sequence[str | Path],
    *,
    media_root: str | Path | None = None,
    media_from: MediaFrom = "disk",
    index_folder: Path | None = None,
    allow_pipe: bool = False,
    copies_gb: float = 20.0,
    progress: bool = True,
) -> SampleSource:
    """Open tar shards or jsonl files, and indexes what has no index yet.

    Args:
        path: Folder, tar, glob, brace expansion, URL or jsonl, or a list of these; tars or jsonl files, not both.
        media_root: Of jsonl files: folder or URL that relative paths start from; None for each jsonl's folder.
        media_from: Of jsonl files: see `JsonlSource`.
        index_folder: Of tars: see `TarSource`.
        allow_pipe: Of tars: see `TarSource`.
        copies_gb: Of tars: see `TarSource`.
        progress: Of tars: see `TarSource`.

    Raises:
        UserError: Nothing of it can be read, or the settings do not fit.
    """
    files = find_jsonl(path)
    if files:
        return JsonlSource(files, media_root=media_root, media_from=media_from)
    if media_root is not None:
        raise UserError(
            f"media_root is {str(media_root)!r}, but {path} are tars, which hold their media; leave it out."
        )
    shards = expand_shards(path, allow_pipe=allow_pipe)
    if not shards:
        raise UserError(f"{path!r} names no shard; give a folder, a tar, a glob, a URL or a jsonl.")
    return TarSource(shards, index_folder=index_folder, allow_pipe=allow_pipe, copies_gb=copies_gb, progress=progress)


def find_jsonl(path: str | Path | Sequence[str | Path]) -> list[str]:
    """List the jsonl files that a recipe names; [] if it names tars.

    Args:
        path: See `open_source`; a folder counts as jsonl files if it holds such, and no tar.
    """
    parts = [path] if isinstance(path, str | Path) else list(path)
    found = [_jsonl_of(str(part)) for part in parts]
    if any(found) and not all(found):
        raise UserError(f"{path} mixes jsonl files and tars; make them two sources.")
    return [file for files in found for file in files]


def _jsonl_of(part: str) -> list[str]:
    folder = Path(part)
    if not is_url(part) and folder.is_dir():
        return [] if any(folder.glob("*.tar")) else sorted(str(file) for file in folder.glob("*.jsonl"))
    if not part.endswith(".jsonl") or part.startswith("pipe:"):
        return []
    return expand_shards(part)
