"""Turn what users give as a video or picture into clips: paths, bytes, file objects, arrays, tensors, PIL pictures.

Shape letters: N clips, F frames, H height, W width.
"""

from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import MAX_CLIPS, ClipConfig, clip_times, decode_clip, image_clip
from divot_datamodules.decoding.frame_pixels import UPRIGHT, FrameConverter
from divot_datamodules.decoding.media_files import PICTURE_CONTAINERS, opened, suffix_of
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, DecodeError, Media, Pixels, decode_frames, probe
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Kind

MediaInput: TypeAlias = str | PathLike[str] | bytes | BinaryIO | NDArray[Any] | Tensor
"""A video or picture: a path, a file's bytes, an open binary file, or pixels.

Pixels are uint8 with the channels (RGB) first or last: (H, W, 3) is a picture, (F, H, W, 3) a video at the frame rate
of the run, (N, F, H, W, 3) clips. Anything that numpy reads as such an array, as a PIL picture, is allowed."""


def read_video(media: MediaInput, clip: ClipConfig, max_clips: int = MAX_CLIPS) -> tuple[Pixels, Kind]:
    """Read all clips of a video, by the rule of `clip_times`, or a picture as one clip.

    Args:
        media: See `MediaInput`.
        clip: How clips are cut.
        max_clips: Most clips.

    Returns:
        uint8 (N, F, 3, H, W), and what it is.

    Raises:
        UserError: The file is missing, or no clip can be read from it; the message says why.
    """
    source, name = _opened_input(media)
    if not isinstance(source, bytes | Path):
        return _array_clips(source, clip, max_clips)
    try:
        if is_picture(source, clip):
            return image_clip(source, clip).video[None], "image"
        times = clip_times(probe(source).duration, clip, max_clips)
        moments = [one[number] for one in times for number in clip.frame_numbers]
        frames = decode_frames(source, moments, clip.size, resize=clip.resize)
    except DecodeError as error:
        raise UserError(f"{name} gives no clip: {error}") from error
    return frames.reshape(len(times), -1, *frames.shape[1:]), "video"


def read_middle_clip(media: MediaInput, clip: ClipConfig) -> Pixels:
    """Read the clip in the middle of a video, or a picture as a clip, uint8 (1, F, 3, H, W); all clips of an array.

    Raises:
        UserError: No clip can be read from it.
    """
    source, name = _opened_input(media)
    if not isinstance(source, bytes | Path):
        return _array_clips(source, clip, MAX_CLIPS)[0]
    try:
        return (image_clip if is_picture(source, clip) else decode_clip)(source, clip).video[None]
    except DecodeError as error:
        raise UserError(f"{name} gives no clip: {error}") from error


def is_picture(media: Media, clip: ClipConfig) -> bool:
    """Return whether a file is a picture: by its suffix, or by its content if it has no name.

    Raises:
        DecodeError: Bytes are no media file.
    """
    if not isinstance(media, bytes):
        return suffix_of(media) in IMAGE_SUFFIXES
    with opened(media, clip.max_pixels) as video:
        return video.kind in PICTURE_CONTAINERS


def _opened_input(media: MediaInput) -> tuple[bytes | Path | NDArray[Any], str]:
    """Return a file's bytes or path, or pixels as an array, with a name for messages."""
    if isinstance(media, str | PathLike):
        path = Path(media)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        return path, str(path)
    if isinstance(media, bytes | bytearray | memoryview):
        return bytes(media), "the given bytes"
    if hasattr(media, "read") and not hasattr(media, "__array_interface__"):
        content = media.read()
        if not isinstance(content, bytes):
            raise UserError('the file object gives text, not bytes; open it with "rb"')
        return content, str(getattr(media, "name", "the file object"))
    return (media.numpy(force=True) if isinstance(media, Tensor) else np.asarray(media)), "the array"


def _array_clips(pixels: NDArray[Any], clip: ClipConfig, max_clips: int) -> tuple[Pixels, Kind]:
    """Cut pixels into clips; those of a video that do not fill a clip are squeezed as those of a file are."""
    first = pixels.ndim >= 3 and pixels.shape[-3] == 3
    last = pixels.ndim >= 3 and pixels.shape[-1] == 3
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4, 5) or not (first or last) or not pixels.size:
        raise UserError(
            f"the array is {pixels.dtype} {tuple(pixels.shape)}, which is no video or picture\n"
            "give uint8 in [0, 255]: (H, W, 3), (frames, H, W, 3) or (clips, frames, H, W, 3), or channels before H"
        )
    channels_last = pixels if last and not first else np.moveaxis(pixels, -3, -1)
    if pixels.ndim == 3:
        still = _resized(channels_last[None], clip)
        return np.broadcast_to(still, (1, len(clip.frame_numbers), *still.shape[1:])), "image"
    if pixels.ndim == 4:
        channels_last = channels_last[_frames_of_clips(len(channels_last), clip, max_clips)]
    elif channels_last.shape[1] == clip.frames:
        channels_last = channels_last[:max_clips, clip.frame_numbers]
    else:
        raise UserError(
            f"the array has clips of {channels_last.shape[1]} frames; this run's have {clip.frames}\n"
            f"give {clip.frames} frames per clip, {clip.fps:g} per second, or one video as (frames, H, W, 3)"
        )
    frames = _resized(channels_last.reshape(-1, *channels_last.shape[2:]), clip)
    return frames.reshape(*channels_last.shape[:2], *frames.shape[1:]), "video"


def _frames_of_clips(num_frames: int, clip: ClipConfig, max_clips: int) -> NDArray[np.int64]:
    """Return the indices of the frames of each clip, (N, F), for a video at the run's frame rate."""
    times = np.array(clip_times(num_frames / clip.fps, clip, max_clips))[:, clip.frame_numbers]
    # The slack keeps rounding errors from moving the exact start of a frame into the frame before.
    return np.minimum((times * clip.fps + 1e-6).astype(np.int64), num_frames - 1)


def _resized(frames_NHW3: Pixels, clip: ClipConfig) -> Pixels:
    """Resize and crop frames as those of files, uint8 (N, 3, H, W)."""
    if frames_NHW3.shape[1:3] == clip.size:
        return np.ascontiguousarray(frames_NHW3.transpose(0, 3, 1, 2))
    convert = FrameConverter(clip.size, orientation=UPRIGHT, resize=clip.resize)
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames_NHW3)
    return np.stack([convert(frame) for frame in frames])


def as_tensor(video: Pixels) -> Tensor:
    """Return pixels as a tensor of its own memory."""
    return torch.from_numpy(np.ascontiguousarray(video).copy())
