"""Reconstruct clips: encode them with the tokenizer, decode the tokens with the de-tokenizer.

Shape letters: F frames, H height, W width.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip, image_clip
from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.sample_errors import decoding_errors
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Pixels
from divot_datamodules.decoding.video_writing import write_comparison, write_video
from divot_datamodules.loading.skipped_samples import skipped_lines
from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.shards.sources import find_jsonl, open_source
from divot_lightning.errors import UserError
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.inference.pipeline_options import Decoding
from divot_lightning.inference.results import output_paths, save_clip
from divot_lightning.models.randomness import seeded_generator
from divot_lightning.parts.sources import SampleError, SkippedSample

LONGEST_NAME = 200
"""Most bytes of a key in a file name; file systems limit the whole name, with its endings, to 255 bytes."""


def read_clips(
    inputs: Sequence[str], clip: ClipConfig, on_skip: Callable[[SkippedSample], object] = lambda sample: None
) -> Iterator[tuple[str, Pixels]]:
    """Read clips from shards and from media files; skip what cannot be read.

    Args:
        inputs: Each a video or picture, or shards: a folder, a tar, a glob or a URL; or a jsonl.
        clip: How clips are cut; of a longer video the clip in its middle.
        on_skip: Called with each sample or file that is skipped, as soon as it is.

    Yields:
        Key and pixels, uint8 (F, 3, H, W).

    Raises:
        UserError: A file is missing, or no clip can be read from any input; the message names the first ones and why.
    """
    skipped: list[SkippedSample] = []

    def note(sample: SkippedSample) -> None:
        skipped.append(sample)
        on_skip(sample)

    count = 0
    for source in inputs:
        suffix = suffix_of(source)
        is_media = suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        for clips in (_file_clip if is_media else _shard_clips)(source, clip, note):
            count += 1
            yield clips
    if not count:
        raise UserError("no clip to take:\n" + "\n".join(skipped_lines(skipped)[:4]))


def _file_clip(
    source: str, clip: ClipConfig, on_skip: Callable[[SkippedSample], object]
) -> Iterator[tuple[str, Pixels]]:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"there is no file {source}")
    is_image = suffix_of(path) in IMAGE_SUFFIXES
    try:
        with decoding_errors():
            video = (image_clip if is_image else decode_clip)(path, clip).video
    except SampleError as error:
        on_skip(SkippedSample(error.reason, source, "", error.detail))
        return
    yield path.stem, video


def _shard_clips(
    source: str, clip: ClipConfig, on_skip: Callable[[SkippedSample], object]
) -> Iterator[tuple[str, Pixels]]:
    """Yield clips shard by shard: a caller that stops early opens no further shard."""
    jsonl = find_jsonl(source)
    for name in jsonl or expand_shards(source):
        shard = open_source(name, progress=False, may_be_empty=True)
        for index in range(shard.counts[0]):
            key = shard.key(0, index)
            try:
                video = SampleDecoder(clip)(shard.read(0, index), None).video
            except SampleError as error:
                on_skip(SkippedSample(error.reason, name, key, error.detail))
                continue
            if video is None:
                raise UserError(f"{name} holds features; give the shards of videos that they were made from")
            for clip_index, pixels in enumerate(video.numpy()):
                yield (key if len(video) == 1 else f"{key}.clip{clip_index}"), pixels
        for skipped in shard.skipped:
            on_skip(skipped)


def reconstruct_files(
    pipeline: DivotPipeline,
    inputs: Sequence[str],
    output: str | Path,
    *,
    num: int = 8,
    seed: int = 0,
    decoding: Decoding | None = None,
    num_tokens: int | None = None,
    suffix: str = "mp4",
    on_skip: Callable[[SkippedSample], object] = lambda sample: None,
) -> Iterator[Path]:
    """Write `<key>.mp4`, `<key>_original.mp4` and `<key>_compare.mp4` for the first clips, or other kinds of video.

    Args:
        pipeline: Of a run that trained or used a tokenizer and a de-tokenizer.
        inputs: See `read_clips`.
        output: Folder of the files.
        num: Number of clips.
        seed: Of the de-tokenizer's noise.
        decoding: How the de-tokenizer samples.
        num_tokens: Leading tokens of each clip that are decoded; None for all. A tokenizer needs
            `bottleneck.nested_dropout` in its training to reconstruct well from fewer.
        suffix: mp4, gif, webm, mkv or avi.
        on_skip: Called with each sample or file that is skipped.

    Returns:
        An iterator that writes the files of one clip at a time and yields the path of its comparison. Run and inputs
        are read before it is returned, so that errors in them come first.
    """
    output_paths(f"clip.{suffix}", 1)  # refuses another kind of file
    clips = list(islice(read_clips(inputs, pipeline.models.decoded_clip, on_skip), num))
    return _write_clips(pipeline, clips, Path(output), seed, decoding, num_tokens, suffix)


def _write_clips(
    pipeline: DivotPipeline,
    clips: list[tuple[str, Pixels]],
    output: Path,
    seed: int,
    decoding: Decoding | None,
    num_tokens: int | None,
    suffix: str,
) -> Iterator[Path]:
    names, models = _file_names(key for key, _ in clips), pipeline.models
    originals = torch.from_numpy(np.stack([video for _, video in clips]))
    with pipeline.sampling(decoding) as sampling:
        settings = models.reconstruction_settings(sampling, seed, num_tokens)
        decoded = models.decode(models.encode(originals, num_tokens), seeded_generator(seed), sampling)
        videos = (video.numpy() for batch in decoded for video in batch)
        for (key, original), name, video in zip(clips, names, videos, strict=True):
            save_clip(output / f"{name}.{suffix}", video, models.fps, {"key": key, **settings})
            write_video(output / f"{name}_original.{suffix}", original, models.fps)
            yield write_comparison(output / f"{name}_compare.{suffix}", original, video, models.fps)


def _file_names(keys: Iterable[str]) -> list[str]:
    """Turn keys into file names that are all different.

    >>> _file_names(["a/b c", "a/b_c", "x"])
    ['a_b_c', 'a_b_c-1', 'x']
    """
    names: list[str] = []
    for key in keys:
        safe = re.sub(r"[^\w.-]+", "_", key).encode()[:LONGEST_NAME].decode(errors="ignore").strip(".")
        name = stem = safe or "clip"
        number = 0
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names
