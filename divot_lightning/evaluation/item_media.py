"""Read the clips of a benchmark's item: from a whole video, a part of one, or a folder of frames.

Shape letters: N clips, F frames, H height, W width.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import ClipConfig, clip_times, decode_clip, image_clip
from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.video import (
    IMAGE_SUFFIXES,
    DecodeError,
    Pixels,
    VideoTiming,
    decode_frames,
    decode_image,
)
from divot_lightning.parts.benchmarks import BenchmarkItem


def read_item(item: BenchmarkItem, clip: ClipConfig, max_clips: int) -> Pixels:
    """Read the clips of an item, cut by `clip_times` from the item's part of the video.

    Args:
        item: Its media must be there.
        clip: How clips are cut.
        max_clips: Most clips.

    Returns:
        uint8 (N, F, 3, H, W).

    Raises:
        DecodeError: The media cannot be decoded or end before the item's part begins, or the item is invalid.
    """
    if item.problem:
        raise DecodeError("corrupt", item.problem)
    media = item.content
    if item.frame_rate is not None:
        assert isinstance(media, Path)
        frames = _decode_folder(media, item.frame_rate, item.bounds, clip, max_clips)
    else:

        def choose(timing: VideoTiming) -> list[float]:
            return _moments(timing.duration, item.bounds, clip, max_clips)

        frames = decode_frames(media, choose, clip.size, max_pixels=clip.max_pixels, resize=clip.resize)
    return frames.reshape(-1, len(clip.frame_numbers), *frames.shape[1:])


def read_middle_clip(item: BenchmarkItem, clip: ClipConfig) -> Tensor:
    """Read the clip in the middle of an item's video, or a picture as a clip; uint8 (F, 3, H, W).

    Raises:
        DecodeError: The media cannot be decoded.
    """
    is_image = suffix_of(item.media_name) in IMAGE_SUFFIXES
    read = image_clip if is_image else decode_clip
    return torch.from_numpy(read(item.content, clip).video.copy())


def _moments(duration: float, bounds: tuple[float, float] | None, clip: ClipConfig, max_clips: int) -> list[float]:
    start, end = bounds or (0.0, duration)
    end = min(end, duration)
    if start >= end:
        raise DecodeError("too_short", f"the part from {start:g} s on, of {duration:.2f} s")
    clips = clip_times(end - start, clip, max_clips)
    return [start + moments[number] for moments in clips for number in clip.frame_numbers]


def _decode_folder(
    folder: Path, rate: float, bounds: tuple[float, float] | None, clip: ClipConfig, max_clips: int
) -> Pixels:
    files = sorted(path for path in folder.iterdir() if suffix_of(path) in IMAGE_SUFFIXES)
    if not files:
        raise DecodeError("empty_media", f"no picture in {folder.name}")
    moments = _moments(len(files) / rate, bounds, clip, max_clips)
    # The slack keeps rounding errors from moving the exact start of a frame into the frame before.
    frame_indices = [min(int(moment * rate + 1e-6), len(files) - 1) for moment in moments]
    pictures = {
        index: decode_image(files[index], clip.size, max_pixels=clip.max_pixels, resize=clip.resize)
        for index in set(frame_indices)
    }
    return np.stack([pictures[index] for index in frame_indices])
