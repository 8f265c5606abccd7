"""Sources of a recipe's paths: tars or jsonl lists, by their suffix.

How a sample gets from a shard into a batch, and which class does what on the way:

1. `SourceConfig` (`shards.source_settings`): what the recipe says of one source: path or source part, weight, tasks.
2. `divot_lightning.parts.sources.Source`: reads sample number s of shard number n. `TarSource` does it for tars,
   `JsonlSource` for jsonl files; `SourceFraction` (`order.source_fraction`) shows a fraction of another source. It is
   made in the training process and used in forked workers. So it keeps no file open across the fork, and stores what
   it knows of its samples in few arrays, which a fork does not copy.
3. `SourceOrder` (`order.source_order`): the endless order of one source's samples. `OrderPlan` mixes the orders of all
   sources into steps; an entry of it is a `SampleIndex`.
4. `LoadedSource` (`loading.batch_reader`): a `Source` together with its `SampleDecoder` (bytes to clips) and the
   function that makes items (clips to the items of a batch).
5. `BatchReader` (`loading.batch_reader`): takes the indices of a step, lets a worker decode their samples, and
   collates the items into a `Batch`.

`SourceFacts` (`order.data_position`) is what a checkpoint stores about a source, so that a resumed run notices changed
data. `MediaItem` (`preparation.media_items`) is a file to pack, no source.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from divot_datamodules.shards.jsonl_source import JsonlSource, MediaFrom, list_files
from divot_datamodules.shards.reading import is_url, require_finished
from divot_datamodules.shards.tar_source import TarSource
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import RawSample, Source


def estimate_skipped(source: Source) -> int:
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
    may_be_empty: bool = False,
) -> Source:
    """Open tar shards or jsonl files, and index those that have no index yet.

    Args:
        path: Folder, tar, glob, brace expansion, URL or jsonl, or a list of these; tars or jsonl files, not both.
        media_root: For jsonl files: folder or URL that relative paths start from; None for the folder of each jsonl.
        media_from: For jsonl files: see `JsonlSource`.
        index_folder: Folder for indexes; see `TarSource` and `JsonlSource`.
        allow_pipe: For tars: see `TarSource`.
        copies_gb: For tars: see `TarSource`.
        progress: For tars: see `TarSource`.
        may_be_empty: For tars: see `TarSource`.

    Raises:
        UserError: No shard can be read, or the settings contradict each other.
    """
    files = find_jsonl(path)
    if files:
        return JsonlSource(files, media_root=media_root, media_from=media_from, index_folder=index_folder)
    if media_root is not None:
        raise UserError(
            f"media_root is {str(media_root)!r}, but {path} are tars, which hold their media; leave it out."
        )
    return TarSource(
        path,
        index_folder=index_folder,
        allow_pipe=allow_pipe,
        copies_gb=copies_gb,
        progress=progress,
        may_be_empty=may_be_empty,
    )


def read_all(path: str | Path | Sequence[str | Path]) -> Iterator[RawSample]:
    """Read every sample of tars or jsonl files, in order.

    Args:
        path: See `open_source`.

    Raises:
        UserError: A shard, or a sample of it, cannot be used.
    """
    source = open_source(path, progress=False)
    if source.skipped:
        first = source.skipped[0]
        where = f"{first.shard}{f', key {first.key}' if first.key else ''}"
        raise UserError(f"{where} cannot be used: {first.reason} ({first.detail}); see `divot data inspect`.")
    for shard, count in enumerate(source.counts):
        yield from (source.read(shard, sample) for sample in range(count))


def find_jsonl(path: str | Path | Sequence[str | Path]) -> list[str]:
    """List the jsonl files that a recipe names; [] if it names tars.

    Args:
        path: See `open_source`; a folder means its jsonl files if it contains some, and no tar.

    Raises:
        UserError: The setting mixes jsonl files and tars.
    """
    parts = [path] if isinstance(path, str | Path) else list(path)
    found = [_jsonl_of(str(part)) for part in parts]
    if any(found) and not all(found):
        raise UserError(f"{path} mixes jsonl files and tars; make them two sources.")
    return [file for files in found for file in files]


def _jsonl_of(part: str) -> list[str]:
    folder = Path(part)
    if not is_url(part) and folder.is_dir():
        require_finished(folder)
        return [] if any(folder.glob("*.tar")) else list_files(part)
    return list_files(part) if part.endswith(".jsonl") and not part.startswith("pipe:") else []
