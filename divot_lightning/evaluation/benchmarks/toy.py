"""Reader of toy shards as a benchmark: each clip with its questions, or with its caption."""

from collections.abc import Iterator
from pathlib import Path

from divot_datamodules.decoding.samples import read_text
from divot_datamodules.decoding.video import VIDEO_SUFFIXES
from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.shards.sources import read_all
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.items import BenchmarkData, BenchmarkItem
from divot_lightning.parts.sources import RawSample


def read_toy_questions(folder: str | Path, split: str) -> BenchmarkData:
    """Read every question of every clip of the shards in `<folder>/<split>`, or in the folder itself."""
    shards = _shards(folder, split)
    return _data(shards, (item for raw in read_all(shards) for item in _question_items(raw)))


def read_toy_clips(folder: str | Path, split: str) -> BenchmarkData:
    """Read every clip of the shards in `<folder>/<split>`, or in the folder itself, with its caption."""
    shards = _shards(folder, split)
    return _data(shards, (_clip_item(raw) for raw in read_all(shards)))


def _shards(folder: str | Path, split: str) -> list[str]:
    inside = Path(folder) / split
    return expand_shards(str(inside if inside.is_dir() else folder))


def _media(raw: RawSample) -> bytes:
    found = next((suffix for suffix in VIDEO_SUFFIXES if suffix in raw.members), None)
    if found is None:
        raise UserError(f"the sample {raw.key!r} of {raw.shard} has no video; give toy shards, not cached features")
    return bytes(raw.members[found])


def _question_items(raw: RawSample) -> Iterator[BenchmarkItem]:
    media, name = _media(raw), f"{Path(raw.shard).name}/{raw.key}"
    for turn in read_text(raw.members).get("questions", []):
        group = turn.get("attribute", "")
        yield BenchmarkItem(f"{name}/{group}", media, name, turn["question"], answer=turn["answer"], group=group)


def _clip_item(raw: RawSample) -> BenchmarkItem:
    name, text = f"{Path(raw.shard).name}/{raw.key}", read_text(raw.members)
    if "attributes" not in text or "start" not in text:
        raise UserError(f"the sample {raw.key!r} of {raw.shard} is no clip of the toy world; make some: divot data toy")
    return BenchmarkItem(
        name, _media(raw), name, references=(text["caption"],), facts={**text, "prompt": text["caption"]}
    )


def _data(shards: list[str], items: Iterator[BenchmarkItem]) -> BenchmarkData:
    found = tuple(items)
    if not found:
        raise UserError(f"there is no item in {shards[0]} and the {len(shards) - 1} other shards")
    return BenchmarkData(found, {Path(shard).name: Path(shard) for shard in shards})
