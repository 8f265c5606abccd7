"""From video files to frames: only the requested frames, by presentation time, as a player shows them.

A frame is shown from its time stamp to the next frame's, so a clip at 8 frames per second can be cut from a source of
any rate, also a variable one. If a video cannot be decoded, `DecodeError` has the reason; a clip is never padded.

Shape letters: F frames, H height, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from divot_datamodules.decoding.frame_pixels import FrameConverter, Pixels, Resize
from divot_datamodules.decoding.media_files import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    PICTURE_CONTAINERS,
    REASONS,
    VIDEO_SUFFIXES,
    DecodeError,
    Media,
    OpenVideo,
    VideoTiming,
    opened,
)
from divot_datamodules.decoding.picture_files import exif_orientation, first_of_animation
from divot_datamodules.decoding.shown_frames import check_every_frame, keyframe_times, shown_frames

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "REASONS",
    "VIDEO_SUFFIXES",
    "DecodeError",
    "Media",
    "MediaInfo",
    "Pixels",
    "VideoTiming",
    "check_media",
    "decode_frames",
    "decode_image",
    "probe",
]


@dataclass(frozen=True)
class MediaInfo(VideoTiming):
    """Timing and size of a media file.

    Attributes:
        height: Height in pixels as shown: rotated as the file says, and with square pixels.
        width: Width in pixels as shown.
    """

    height: int
    width: int


def probe(media: Media, *, max_pixels: int = MAX_PIXELS) -> MediaInfo:
    """Read a media file's header and its first picture, which has the rotation.

    Args:
        media: The file's bytes or its path.
        max_pixels: Largest height x width.

    Raises:
        DecodeError: The file cannot be opened, or its first picture cannot be decoded.
    """
    with opened(media, max_pixels) as video:
        timing = video.timing()
        frame = _first_frame(media, video, max_pixels)
        height, width = _converter(media, video, None).shown_size(frame)
        return MediaInfo(**asdict(timing), height=height, width=width)


def shown_size(media: Media, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Decode the first picture of a file and return its height and width as shown; see `probe` for the arguments."""
    with opened(media, max_pixels) as video:
        frame = _first_frame(media, video, max_pixels)
        return _converter(media, video, None).shown_size(frame)


def decode_frames(
    media: Media,
    times: Sequence[float] | Callable[[VideoTiming], Sequence[float]],
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    resize: Resize = "bicubic",
) -> Pixels:
    """Decode the frames that are shown at the given times.

    Args:
        media: The file's bytes or its path.
        times: Seconds after the video's start, ascending; or a function that chooses them by the file's header, called
            once.
        size: Height and width in pixels: the short side is resized and the centre is cropped; None keeps the
            size of the source.
        max_pixels: Largest height x width of the source; a larger one is refused before it is decoded.
        resize: See `ClipConfig`.

    Returns:
        uint8 (number of times, 3, H, W) in [0, 255], RGB; never fewer frames than times.

    Raises:
        DecodeError: The file cannot be decoded, or has no frame at one of the times.
    """
    with opened(media, max_pixels) as video:
        chosen = times(video.timing()) if callable(times) else times
        if not len(chosen) or list(chosen) != sorted(chosen):
            raise ValueError(f"times must be at least one and ascend, got {list(chosen)[:8]}")
        try:
            return _decode(media, video, chosen, size, resize, seek=True)
        except (av.FFmpegError, EOFError, OSError):
            pass
        except DecodeError as error:
            if error.reason != "corrupt":
                raise
    # Some streams decode only from their start: old x264 files in 4:4:4 have their version in the first frame.
    with opened(media, max_pixels) as video:
        return _decode(media, video, chosen, size, resize, seek=False)


def _decode(
    media: Media, video: OpenVideo, times: Sequence[float], size: tuple[int, int] | None, resize: Resize, *, seek: bool
) -> Pixels:
    clip, last, convert = np.empty(0, np.uint8), None, None
    for number, frame in enumerate(shown_frames(video, times, keyframe_times(video) if seek else [])):
        if frame is last:
            clip[number] = clip[number - 1]
            continue
        convert = convert or _converter(media, video, size, resize)
        planes, last = convert.planes(frame), frame
        if number == 0:
            clip = np.empty((len(times), len(planes), *planes[0].shape), np.uint8)
        for colour, plane in enumerate(planes):  # without a copy of the frame between the decoder and the clip
            clip[number, colour] = plane
    return clip


def _converter(
    media: Media, video: OpenVideo, size: tuple[int, int] | None, resize: Resize = "bicubic"
) -> FrameConverter:
    """Return the converter for the frames of a file, of which one was decoded."""
    if video.kind in PICTURE_CONTAINERS:
        return FrameConverter(size, orientation=exif_orientation(_picture_bytes(media)), resize=resize)
    # Browsers and picture viewers ignore the pixel aspect ratio in gifs and pictures.
    return FrameConverter(size, 1.0 if video.kind == "gif" else video.pixel_aspect, resize=resize)


def _picture_bytes(media: Media) -> bytes:
    return media if isinstance(media, bytes) else Path(media).read_bytes()


def _first_frame(media: Media, video: OpenVideo, max_pixels: int) -> Any:
    if video.kind == "webp_pipe":
        frame = first_of_animation(_picture_bytes(media), max_pixels)
        if frame is not None:
            return frame
    frame = next(video.container.decode(video.stream), None)
    if frame is None:
        raise DecodeError("undecodable", "no frame in it")
    if frame.is_corrupt:
        raise DecodeError("corrupt", "the first frame")
    return frame


def decode_image(
    media: Media, size: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS, resize: Resize = "bicubic"
) -> Pixels:
    """Decode a picture, or the first frame of a video or animated picture.

    Args:
        media: The file's bytes or its path.
        size: See `decode_frames`.
        max_pixels: See `decode_frames`.
        resize: See `ClipConfig`.

    Returns:
        uint8 (3, H, W) in [0, 255], RGB.
    """
    with opened(media, max_pixels) as video:
        frame = _first_frame(media, video, max_pixels)
        return _converter(media, video, size, resize)(frame)


def check_media(media: Media, *, max_pixels: int = MAX_PIXELS) -> None:
    """Decode every frame of a video, or a picture, to check it.

    Args:
        media: The file's bytes or its path.
        max_pixels: See `decode_frames`.

    Raises:
        DecodeError: A part of the file is damaged or missing.
    """
    with opened(media, max_pixels) as video:
        if video.kind in PICTURE_CONTAINERS:
            _first_frame(media, video, max_pixels)
        else:
            check_every_frame(video)
