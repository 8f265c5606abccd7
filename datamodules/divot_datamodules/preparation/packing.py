"""Packing of a folder, or a jsonl, of videos and pictures into shards."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from divot_datamodules.decoding.frame_pixels import Resize
from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.video import (
    IMAGE_SUFFIXES,
    DecodeError,
    MediaInfo,
    check_media,
    decode_frames,
    decode_image,
    probe,
)
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.loading.skipped_samples import Budget, SkippedSamples
from divot_datamodules.preparation.media_items import MediaItem, find_media
from divot_datamodules.shards.reading import MEDIA_SUFFIXES
from divot_datamodules.shards.writing import Sample, ShardFolder
from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.io.files import text_sha256
from divot_lightning.parts.sources import SampleError, SkippedSample

Check = Literal["all", "first"]


@dataclass(frozen=True)
class PackConfig:
    """Settings of packing: how media files become samples.

    Attributes:
        clip_seconds: Cut videos into consecutive pieces of this length and leave out what remains at the end; None
            packs the files unchanged. The videos of a story are always packed unchanged.
        fps: Frames per second of the pieces.
        size: Short side of the pieces in pixels; None keeps the source's.
        samples_per_shard: Most samples in a shard.
        check: Frames of an unchanged file that must decode, so that no broken file is packed: "all" frames, or the
            "first" one, which is much faster but misses files that are damaged later or cut off.
        resize: Filter that makes the pieces smaller, see `ClipConfig`; needs `size`.
    """

    clip_seconds: float | None = None
    fps: float = 8.0
    size: int | None = None
    samples_per_shard: int = 256
    check: Check = "all"
    resize: Resize = "bicubic"

    def __post_init__(self) -> None:
        require_at_least(0, clip_seconds=self.clip_seconds, fps=self.fps)
        require_at_least(1, size=self.size, samples_per_shard=self.samples_per_shard)
        if self.clip_seconds is not None and self.clip_seconds * self.fps < 1:
            raise UserError(f"clip_seconds is {self.clip_seconds}; at {self.fps} frames per second that is no frame.")
        if self.fps != PackConfig.fps and self.clip_seconds is None:
            raise UserError(f"fps is {self.fps}, but files are packed unchanged; give clip_seconds as well.")
        if self.size is not None and self.clip_seconds is None:
            raise UserError(f"size is {self.size}, but files are packed unchanged; give clip_seconds as well.")
        if self.resize != "bicubic" and self.size is None:
            raise UserError(f"resize is {self.resize!r}, but nothing is resized; give size as well.")
        require_one_of(get_args(Check), check=self.check)


@dataclass
class PackReport:
    """The result of packing.

    Attributes:
        samples: Number of samples written.
        with_text: Number of them that have a text.
        shards: Number of shards written.
        skipped: Files that were skipped, with reasons; `shard` is the path of the file.
        already_there: Whether the output folder already contained exactly these shards.
    """

    samples: int
    with_text: int
    shards: int
    skipped: list[SkippedSample]
    already_there: bool = False


def _piece_size(info: MediaInfo, short_side: int | None) -> tuple[int, int]:
    """Return height and width of the pieces: even numbers with the aspect ratio of the source."""
    scale = 1.0 if short_side is None else short_side / min(info.height, info.width)
    return 2 * round(info.height * scale / 2), 2 * round(info.width * scale / 2)


def _pieces(item: MediaItem, info: MediaInfo, config: PackConfig) -> Iterator[tuple[str, bytes]]:
    assert config.clip_seconds is not None
    frames = round(config.clip_seconds * config.fps)
    count = int((info.duration + 0.5 / max(info.fps, config.fps)) // config.clip_seconds)
    if count == 0:
        raise DecodeError("too_short", f"{info.duration:.2f} s of {config.clip_seconds:.2f} s")
    for number in range(count):
        times = [number * config.clip_seconds + frame / config.fps for frame in range(frames)]
        video = decode_frames(item.paths[0], times, _piece_size(info, config.size), resize=config.resize)
        yield f"{item.key}_{number:04d}", encode_video(video, config.fps)


def _suffix(path: Path) -> str:
    suffix = suffix_of(path)
    if suffix not in MEDIA_SUFFIXES:
        raise DecodeError("undecodable", f"suffix {suffix!r} is none of {', '.join(MEDIA_SUFFIXES)}")
    return suffix


def _whole(path: Path, check: Check) -> bytes:
    """Read a file unchanged, and decode the frames that `PackConfig.check` names."""
    if not path.is_file():
        raise SampleError("missing_media", f"the file {path} does not exist")
    data = path.read_bytes()
    (check_media if check == "all" else decode_image)(data)
    return data


def _media_samples(item: MediaItem, config: PackConfig) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and media of the samples of an item: one sample, or the pieces of its video."""
    suffixes = [_suffix(path) for path in item.paths]
    if len(item.paths) > 1:
        files = zip(suffixes, item.paths, strict=True)
        yield (
            item.key,
            {f"clip{number}.{suffix}": _whole(path, config.check) for number, (suffix, path) in enumerate(files)},
        )
    elif suffixes[0] in IMAGE_SUFFIXES or config.clip_seconds is None:
        yield item.key, {suffixes[0]: _whole(item.paths[0], config.check)}
    else:
        for key, data in _pieces(item, probe(item.paths[0]), config):
            yield key, {"mp4": data}


def _samples(
    items: Iterable[MediaItem], config: PackConfig, on_skipped: Callable[[SkippedSample], None]
) -> Iterator[Sample]:
    for item in items:
        try:
            if item.problem is not None:
                raise item.problem
            texts: Mapping[str, bytes] = {"json": json.dumps(item.text).encode()} if item.text else {}
            for key, media in _media_samples(item, config):
                yield key, {**media, **texts}
        except (DecodeError, SampleError) as error:
            on_skipped(SkippedSample(error.reason, str(item.paths[0]), item.key, error.detail))


def _fingerprint(items: list[MediaItem]) -> str:
    """Return a hash of names, sizes and texts, which notices a changed input without reading the media."""
    facts = [
        (item.key, [path.stat().st_size if path.is_file() else None for path in item.paths], item.text)
        for item in items
    ]
    return text_sha256(json.dumps(facts))[:16]


def pack(source: str | Path, output: str | Path, config: PackConfig, *, progress: bool = False) -> PackReport:
    """Pack a folder or a jsonl into shards.

    A file that cannot be decoded is skipped and reported; texts are packed unchanged.

    Args:
        source: A folder, or a jsonl with a path in "video" or "image", or several in order in "videos" or "images", and
            texts in the other fields.
        output: Folder of the shards.
        config: Settings of packing.
        progress: Whether to show a bar with rate and time left.

    Raises:
        UserError: No file can be packed.
    """
    items = find_media(Path(source))
    settings = {"source": _fingerprint(items), **asdict(config)}
    if config.resize == PackConfig.resize:
        del settings["resize"]  # folders of earlier versions lack it
    folder = ShardFolder(output, kind="video", settings=settings)
    skipped = SkippedSamples("pack", Path(output), Budget(max_skipped_fraction=1.0))
    if folder.complete:
        facts = folder.facts()
        return PackReport(facts["num_samples"], facts["with_text"], len(folder.entries()), skipped.all(), True)
    folder.restart()
    skipped.clear()
    counted = {"with_text": 0}

    def counting(samples: Iterator[Sample]) -> Iterator[Sample]:
        for key, members in samples:
            counted["with_text"] += "json" in members
            yield key, members

    with tqdm(items, desc="files", unit="file", disable=not progress) as bar:
        folder.write_all(counting(_samples(bar, config, skipped.add)), config.samples_per_shard)
    if not folder.entries():
        raise UserError(f"none of {len(items)} files can be packed: {skipped.reasons()}; see {output}/skipped-*.jsonl.")
    index = folder.finish(**counted)
    return PackReport(index["num_samples"], counted["with_text"], len(folder.entries()), skipped.all())
