"""Items of shards and of folders of videos; the videos stay where they are until they are needed."""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.samples import media_names, read_text
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from divot_datamodules.shards.reading import FEATURE_SUFFIX, is_url, split_member_name
from divot_datamodules.shards.sources import read_all
from divot_lightning.errors import UserError
from divot_lightning.parts.benchmarks import BenchmarkData, BenchmarkItem, FileSlice

MEDIA = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
Member = bytes | Path | FileSlice


@dataclass(frozen=True)
class ShardSample:
    """A sample of a shard.

    Attributes:
        name: Shard and key.
        clips: Its video or picture, those of a story in order; or its cached features.
        text: The content of its json, empty without one.
        is_features: Whether the media are cached features.
    """

    name: str
    clips: tuple[Member, ...]
    text: dict[str, Any]
    is_features: bool = False

    @property
    def media(self) -> Member:
        """The first video or picture, or the features."""
        return self.clips[0]

    @property
    def items(self) -> list[BenchmarkItem]:
        """An item for each video or picture alone, or for the features."""
        names = [f"{self.name}.clip{at}" for at in range(len(self.clips))] if len(self.clips) > 1 else [self.name]
        pairs = zip(names, self.clips, strict=True)
        return [BenchmarkItem(name, clip, name, is_features=self.is_features) for name, clip in pairs]


def shard_items(
    shards: Sequence[str], items: Callable[[ShardSample], Iterable[BenchmarkItem]], *, features: bool = False
) -> BenchmarkData:
    """Read the items of all samples.

    Args:
        shards: Paths or URLs of tars, or jsonl files.
        items: Returns the items of a sample.
        features: Whether samples may have cached features instead of a video. Shards of features belong to the measured
            model, so that they are not among the files of the result.

    Raises:
        UserError: There is no item, or a sample has no video.
    """
    samples = [(shard, sample) for shard in shards for sample in _samples(shard, features)]
    found = tuple(item for _, sample in samples for item in items(sample))
    if not found:
        raise UserError(f"there is no item in {shards[0]} and the {len(shards) - 1} other shards")
    data = dict.fromkeys(shard for shard, sample in samples if not sample.is_features and not is_url(shard))
    return BenchmarkData(found, {Path(shard).name: Path(shard) for shard in data})


def folder_items(folder: Path) -> BenchmarkData:
    """Return an item for each video and picture in a folder and the folders in it, by name."""
    paths = sorted(path for path in folder.rglob("*") if suffix_of(path) in MEDIA)
    names = [str(path.relative_to(folder)) for path in paths]
    return BenchmarkData(tuple(map(BenchmarkItem, names, paths, names)), {})


def _samples(shard: str, features: bool) -> Iterator[ShardSample]:
    """Yield the samples of a shard; media in a tar on the disk are not read."""
    is_tar = not is_url(shard) and shard.endswith(".tar")
    for key, members in _tar_members(Path(shard)) if is_tar else _other_members(shard):
        is_features = features and FEATURE_SUFFIX in members
        clips = tuple(members[name] for name in ([FEATURE_SUFFIX] if is_features else media_names(members)))
        if not clips:
            raise UserError(f"the sample {key!r} of {shard} has no video; give shards of videos, not cached features")
        text = read_text({name: value for name, value in members.items() if not isinstance(value, FileSlice)})
        yield ShardSample(f"{Path(shard).name}/{key}", clips, text, is_features)


def _tar_members(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    samples: dict[str, dict[str, Member]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            named = split_member_name(member.name) if member.isfile() else None
            if named is None:
                continue
            key, suffix = named
            part = FileSlice(shard, member.offset_data, member.size)
            is_media = suffix == FEATURE_SUFFIX or suffix.split(".")[-1] in MEDIA
            samples.setdefault(key, {})[suffix] = part if is_media else part.read()
    yield from samples.items()


def _other_members(shard: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the samples of a jsonl, or of a tar at a URL."""
    for raw in read_all(shard):
        yield raw.key, dict(raw.members)
