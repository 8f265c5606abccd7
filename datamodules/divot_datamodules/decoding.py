"""Video files to frames: only the frames that are asked for, by presentation time.

A frame is shown from its time stamp to the next frame's, so a clip at 8 frames per second can be cut from a source of
any rate, a varying one included. What cannot be decoded raises `DecodeError` with a reason; a clip is never filled up.

Shape letters: F frames, H height, W width.
"""

import io
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Media = bytes | str | Path

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "gif", "mov", "m4v")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

REASONS = (
    "missing_media",
    "empty_media",
    "undecodable",
    "no_video_stream",
    "too_large",
    "too_short",
    "corrupt",
)
"""Why a media file can be refused: it is not there; it is empty; it cannot be opened; it has no pictures; its pictures
are larger than allowed; it shows nothing at a moment that is asked for; it breaks or is damaged on the way there."""

MAX_PIXELS = 7680 * 4320
"""Largest picture that is decoded unless a caller says otherwise, height x width: 8K television."""


class DecodeError(Exception):
    """A media file gives no clip.

    Attributes:
        reason: One of `REASONS`.
        detail: What was seen, for the report.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)  # both as arguments, so that the error travels between processes
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class MediaInfo:
    """What a media file says about itself.

    Attributes:
        duration: Seconds from the first frame's time stamp to the end of the last, as the header or, without one
            there, as the packets say. What a truncated file promises may be more than what it holds.
        fps: Average rate, frames per second.
        num_frames: Frames that the header promises; 0 where it does not say.
        height: Pixels.
        width: Pixels.
        codec: FFmpeg's name.
    """

    duration: float
    fps: float
    num_frames: int
    height: int
    width: int
    codec: str


# PyAV 19 has no such argument: it keeps tags that are no UTF-8 by itself, with surrogate escapes.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def _open(media: Media, options: dict[str, str]) -> Any:
    """Opens a container, with FFmpeg's errors turned into `DecodeError`."""
    if isinstance(media, bytes) and not media:
        raise DecodeError("empty_media")
    source = io.BytesIO(media) if isinstance(media, bytes) else str(media)
    try:
        return av.open(source, options=options, **_LENIENT)
    except FileNotFoundError as error:
        raise DecodeError("missing_media", f"there is no file {media!s}") from error
    except (av.FFmpegError, EOFError, OSError, ValueError) as error:
        if not isinstance(media, bytes) and Path(media).is_file() and Path(media).stat().st_size == 0:
            raise DecodeError("empty_media") from error
        raise DecodeError("undecodable", _first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _opened(media: Media, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Opens a container and its first video stream; what goes wrong on the way is `DecodeError` "corrupt"."""
    # FFmpeg itself must know the limit: it decodes a picture of some formats before it tells their size.
    with _open(media, {"max_pixels": str(max_pixels)}) as container:
        if not container.streams.video:
            raise DecodeError("no_video_stream")
        stream = container.streams.video[0]
        height, width = (stream.height, stream.width) if stream.width else _size_without_limit(media)
        if height * width > max_pixels:
            raise DecodeError("too_large", f"{height} x {width} pixels, more than {max_pixels}")
        stream.codec_context.thread_count = 1  # loader workers are the parallelism
        try:
            yield container, stream
        except (av.FFmpegError, EOFError) as error:
            raise DecodeError("corrupt", _first_line(error)) from error


def _size_without_limit(media: Media) -> tuple[int, int]:
    """Returns height and width of a file whose size the limit kept FFmpeg from telling; (0, 0) if it has none."""
    with _open(media, {}) as container:
        return container.streams.video[0].height, container.streams.video[0].width


def _duration(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration / av.time_base) - _start(stream)
    ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    container.seek(0)
    return float(max(ends, default=0) * stream.time_base) - _start(stream)


def _start(stream: Any) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _fps(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _info(container: Any, stream: Any) -> MediaInfo:
    return MediaInfo(
        duration=_duration(container, stream),
        fps=_fps(stream),
        num_frames=stream.frames,
        height=stream.height,
        width=stream.width,
        codec=stream.codec_context.name,
    )


def probe(media: Media, *, max_pixels: int = MAX_PIXELS) -> MediaInfo:
    """Reads a media file's header.

    Args:
        media: The file's bytes or its path.
        max_pixels: Largest height x width.
    """
    with _opened(media, max_pixels) as (container, stream):
        return _info(container, stream)


def _resized(height: int, width: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Returns the smallest (height, width) of the same aspect that covers `size`.

    >>> _resized(720, 1280, (64, 64))
    (64, 114)
    >>> _resized(30, 40, None)
    (30, 40)
    """
    if size is None:
        return height, width
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


class _Converter:
    """Turns decoded frames into RGB pixels of one size; keeps the scaler, which costs more than a small frame."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size
        self.reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> Pixels:
        height, width = _resized(frame.height, frame.width, self.size)
        same = (height, width) == (frame.height, frame.width)
        # swscale widens its filter when it shrinks, so that bicubic is free of aliasing in both directions. One thread:
        # threads of its own give the same bytes and, on small frames, cost far more than they bring.
        interpolation = None if same else "BICUBIC"
        picture = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=interpolation, threads=1
        ).to_ndarray()
        if self.size is not None:
            top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
            picture = picture[top : top + self.size[0], left : left + self.size[1]]
        return cast(Pixels, picture.transpose(2, 0, 1))


def _keyframe_times(stream: Any) -> list[float]:
    """Times of the keyframes as far as the container's index knows them, right for decoding no more than needed.

    An mp4's index has times of decoding, which run ahead of presentation by as much for every keyframe as for the
    first one. Where that is not so, a seek lands on the keyframe before.
    """
    entries = stream.index_entries
    start = min((stream.start_time or 0, *(entry.timestamp for entry in list(entries)[:1])))
    return [float((entry.timestamp - start) * stream.time_base) for entry in entries if entry.is_keyframe]


def _shown_frames(container: Any, stream: Any, times: Sequence[float], keyframes: Sequence[float]) -> Iterator[Any]:
    """Yields, for each of the ascending times, the decoded frame that is shown then.

    Decodes from the last keyframe before the first time, and jumps again where a keyframe lies between two times.
    """
    fps, start = _fps(stream), _start(stream)
    # Containers round time stamps (mkv to 1 ms, gif to 10 ms); a frame may start that much after its time.
    slack = min(0.75 * float(stream.time_base), 0.25 / fps) + 1e-6
    frames: Iterator[Any] = iter(())
    shown: Any = None
    upcoming: Any = None
    sought = False
    position = -float("inf")
    for time in times:
        key = max((k for k in keyframes if k <= time + slack), default=0.0)
        if shown is None or key > position + 1e-6:
            sought = key > 0.0
            if sought:
                container.seek(int((time + start + slack) / stream.time_base), stream=stream)
            frames, shown, upcoming = _decoded(container, stream, [time + slack for time in times]), None, None
        while upcoming is None or upcoming.time - start <= time + slack:
            shown, upcoming = upcoming or shown, next(frames, None)
            if upcoming is None:
                break
        if shown is None and upcoming is not None:
            if sought:
                raise DecodeError("corrupt", f"the index leads behind {time:.3f} s")
            shown = upcoming  # the first frame of all stands for the moments before its time stamp
        if shown is None or (upcoming is None and not _lasts_until(shown, time, start, fps, slack)):
            raise DecodeError("too_short", f"no frame at {time:.3f} s")
        if shown.is_corrupt:
            raise DecodeError("corrupt", f"the frame at {shown.time - start:.3f} s")
        position = shown.time - start
        yield shown


def _decoded(container: Any, stream: Any, ends: Sequence[float]) -> Iterator[Any]:
    """Yields frames, without those that are shown at none of the moments and that no other frame refers to.

    Args:
        container: Where its next packet is the first to decode.
        stream: Of the container.
        ends: The moments, in seconds, ascending: a frame is shown at one if none follows it up to there.
    """
    if "mp4" not in container.format.name.split(","):
        yield from container.decode(stream)  # others do not state both times of a packet: FFmpeg guesses one
        return
    start, base = _start(stream), stream.time_base
    for packet, successor in _with_successors(container.demux(stream)):
        unused = False
        if successor is not None:
            place = bisect_left(ends, float(packet.pts * base) - start)
            unused = place == len(ends) or ends[place] >= float(successor * base) - start
        stream.codec_context.skip_frame = "NONREF" if unused else "DEFAULT"
        yield from packet.decode()


def _with_successors(packets: Iterable[Any]) -> Iterator[tuple[Any, int | None]]:
    """Yields packets with the time stamp of the frame that is shown next; None where that cannot be told."""
    held: deque[Any] = deque()
    stamps: list[int] = []
    for packet in packets:
        held.append(packet)
        if packet.pts is None or packet.dts is None:
            yield from ((packet, None) for packet in held)
            held.clear()
            continue
        insort(stamps, packet.pts)
        while held:
            place = bisect_right(stamps, held[0].pts)
            # No packet is shown before it is decoded: what is still to come is not shown before this one's dts.
            if place == len(stamps) or stamps[place] > packet.dts:
                break
            yield held.popleft(), stamps[place]
    yield from ((packet, None) for packet in held)


def _lasts_until(frame: Any, time: float, start: float, fps: float, slack: float) -> bool:
    length = float(frame.duration * frame.time_base) if frame.duration else 1.0 / fps
    return bool(time < frame.time - start + length + slack)


def decode_frames(
    media: Media, times: Sequence[float], size: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Decodes the frames that are shown at given times.

    Args:
        media: The file's bytes or its path.
        times: Seconds after the video's start, ascending.
        size: Height and width in pixels: the short side is resized and the middle is cut out; None keeps the
            source's.
        max_pixels: Largest height x width of the source; a larger one is refused before it is decoded.

    Returns:
        uint8 (len(times), 3, H, W) in [0, 255], RGB; never fewer frames than times.

    Raises:
        DecodeError: The file cannot be decoded, or shows nothing at one of the times.
    """
    return decode_chosen(media, lambda info: times, size, max_pixels=max_pixels)


def decode_chosen(
    media: Media,
    choose: Callable[[MediaInfo], Sequence[float]],
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decodes frames whose times depend on the file's header; opens the file once.

    Args:
        media: The file's bytes or its path.
        choose: Gives the times, see `decode_frames`; called once.
        size: See `decode_frames`.
        max_pixels: See `decode_frames`.

    Returns:
        uint8 (number of times, 3, H, W); see `decode_frames`.
    """
    with _opened(media, max_pixels) as (container, stream):
        times = choose(_info(container, stream))
        if list(times) != sorted(times):
            raise ValueError(f"times must ascend, got {list(times)[:8]}")
        try:
            return _decode(container, stream, times, size, seek=True)
        except (av.FFmpegError, EOFError):
            pass
        except DecodeError as error:
            if error.reason != "corrupt":
                raise
    # Some streams decode only from their start: old x264 files in 4:4:4 tell their version in the first frame.
    with _opened(media, max_pixels) as (container, stream):
        return _decode(container, stream, times, size, seek=False)


def _decode(container: Any, stream: Any, times: Sequence[float], size: tuple[int, int] | None, *, seek: bool) -> Pixels:
    convert, pictures = _Converter(size), []
    last: tuple[Any, Pixels] | None = None
    for frame in _shown_frames(container, stream, times, _keyframe_times(stream) if seek else []):
        if last is None or last[0] is not frame:
            last = (frame, convert(frame))
        pictures.append(last[1])
    return np.stack(pictures)


def decode_image(media: Media, size: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a picture, or a video's first frame.

    Args:
        media: The file's bytes or its path.
        size: See `decode_frames`.
        max_pixels: See `decode_frames`.

    Returns:
        uint8 (3, H, W) in [0, 255], RGB.
    """
    with _opened(media, max_pixels) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise DecodeError("undecodable", "no frame in it")
        if frame.is_corrupt:
            raise DecodeError("corrupt", "the first frame")
        return np.ascontiguousarray(_Converter(size)(frame))
