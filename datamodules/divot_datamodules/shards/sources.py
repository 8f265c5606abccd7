"""Sample sources: the interface, and a function that opens the source of a path.

Any sample of a source can be read by its index, so that an order of samples can be planned. Sources are made in the
training process and used in forked workers. So they keep no file open across the fork, and store what they know of
their samples in few arrays, which a fork does not copy.

How a sample gets from a shard into a batch, and which class does what on the way:

1. `Source` (`shards.source_settings`): what the recipe says of one source: path, weight, tasks.
2. `SampleSource` (this module): reads the bytes of sample number s of shard number n. `TarSource` does it for tars,
   `JsonlSource` for jsonl files; `SourceFraction` (`order.source_fraction`) shows a fraction of another source.
3. `SourceOrder` (`order.order_plan`): the endless order of one source's samples. `OrderPlan` mixes the orders of all
   sources into steps; an entry of it is a `SampleIndex`.
4. `LoadedSource` (`loading.plan_loader`): a `SampleSource` together with its `SampleDecoder` (bytes to clips) and the
   function that makes items (clips to the items of a batch).
5. `BatchReader` (`loading.plan_loader`): takes the indices of a step, lets a worker decode their samples, and
   collates the items into a `Batch`.

`SourceFacts` (`order.data_position`) is what a checkpoint stores about a source, so that a resumed run notices changed
data. `divot_datamodules.preparation.packing` has a `MediaItem` for each sample that it packs; it is no source.
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

    Each rank indexes by itself, and ranks have the same order only if their fingerprints are equal, so compare these.
    With a shared `index_folder`, let one rank open the source first: the others then find its index there.

    A shard is a tar or a jsonl file.

    Attributes:
        counts: Usable samples per shard; 0 for a shard that cannot be read.
        skipped: Samples and shards that indexing found to be unusable: missing or cut shards, members that are not
            adjacent, and so on. They are not among the usable samples.
        fingerprint: Hash of the shards' names (without folders) and sizes, and of keys and byte ranges of the samples;
            equal for equal data.
    """

    counts: tuple[int, ...]
    skipped: list[SkippedSample]
    fingerprint: str

    @property
    def content(self) -> str:
        """Hash of parts of the shards' content, see `divot_datamodules.shards.content`; "" where nothing is known."""
        ...

    def shard_path(self, shard: int) -> str:
        """Return path or URL of a shard, as `SkippedSample` has it."""
        ...

    def key(self, shard: int, sample: int) -> str:
        """Return a sample's key without reading the sample."""
        ...

    def read(self, shard: int, sample: int) -> RawSample:
        """Read exactly one sample's bytes.

        Args:
            shard: Index of the shard.
            sample: Index among the shard's usable samples, from 0 to `counts[shard] - 1`.

        Raises:
            divot_datamodules.decoding.samples.SampleError: It cannot be read, such as "missing_shard", "shard_changed".
        """
        ...


def estimate_losses(source: SampleSource) -> int:
    """Estimate how many samples are skipped because of what indexing found.

    A shard without a usable sample counts as many as the others contain on average. In other shards each entry of
    `skipped` counts as one.
    """
    named = {source.shard_path(shard) for shard, count in enumerate(source.counts) if not count}
    empty = named & {sample.shard for sample in source.skipped}
    readable = len(source.counts) - len(named)
    each = max(1, round(sum(source.counts) / readable)) if readable else 1
    return each * len(empty) + sum(sample.shard not in empty for sample in source.skipped)


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
    """Open tar shards or jsonl files, and index those that have no index yet.

    Args:
        path: Folder, tar, glob, brace expansion, URL or jsonl, or a list of these; tars or jsonl files, not both.
        media_root: For jsonl files: folder or URL that relative paths start from; None for the folder of each jsonl.
        media_from: For jsonl files: see `JsonlSource`.
        index_folder: For tars: see `TarSource`.
        allow_pipe: For tars: see `TarSource`.
        copies_gb: For tars: see `TarSource`.
        progress: For tars: see `TarSource`.

    Raises:
        UserError: No shard can be read, or the settings contradict each other.
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
        path: See `open_source`; a folder means its jsonl files if it contains some, and no tar.
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
