"""Media files, opened: which containers, which stream, how long, and why not.

FFmpeg gets neither a name nor leave to open anything: we read the file, and the container must be of a short list. What
a sample's bytes say can therefore lead to no other file, address or port.
"""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.stream import Disposition

Media = bytes | str | Path

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "gif", "mov", "m4v")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

VIDEO_CONTAINERS = ("mov", "matroska", "avi", "flv", "mpegts", "gif")
"""FFmpeg's names of the containers of videos that are opened, whatever the suffix; "mov" is mp4 and m4v as well,
"matroska" webm. Downloads named mp4 are flv or mpegts at times. None of them leads to other files."""

PICTURE_CONTAINERS = ("jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe", "apng")
"""FFmpeg's names for picture files."""

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


# PyAV 19 has no such argument: it keeps tags that are no UTF-8 by itself, with surrogate escapes.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


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
class VideoTiming:
    """How long a video is and how fast, known before a frame of it is decoded.

    Attributes:
        duration: Seconds from the first picture's time stamp to the end of the last, as the video stream's header or,
            without one there, its packets say; sound that lasts longer does not count. What a truncated file promises
            may be more than what it holds.
        fps: Average rate, frames per second.
        num_frames: Frames that the header promises; 0 where it does not say.
        codec: FFmpeg's name.
    """

    duration: float
    fps: float
    num_frames: int
    codec: str


@dataclass(frozen=True)
class OpenVideo:
    """A container and the stream of it that is decoded.

    Attributes:
        container: Of PyAV, at its start.
        stream: Its video stream; it has a decoder.
    """

    container: Any
    stream: Any

    @property
    def kind(self) -> str:
        """FFmpeg's first name for the container, as in `VIDEO_CONTAINERS` and `PICTURE_CONTAINERS`."""
        return str(self.container.format.name).split(",")[0]

    @property
    def start(self) -> float:
        """Time stamp of the first picture, seconds."""
        return float((self.stream.start_time or 0) * self.stream.time_base)

    @property
    def fps(self) -> float:
        """Average rate, frames per second."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def timing(self) -> VideoTiming:
        """Read the timing; the container is at its start again afterwards."""
        return VideoTiming(self._duration(), self.fps, self.stream.frames, self.stream.codec_context.name)

    def _duration(self) -> float:
        # An mp4 in fragments counts no frames in its header, and its length from zero instead of from the first frame.
        if self.stream.duration and (self.kind == "avi" or (self.kind == "mov" and self.stream.frames)):
            return float(self.stream.duration * self.stream.time_base)
        return self._last_end() - self.start

    def _last_end(self) -> float:
        """Return when the last picture ends, in seconds, by the packets from the last keyframe on, or by all of them.

        The headers of mkv, webm, flv and mpegts tell the length of the whole file, sound included.
        """
        end = None
        if self.container.duration and self.kind in ("matroska", "mov", "flv"):
            self.container.seek(self.container.duration + (self.container.start_time or 0))
            end = self._end_of_packets()
        if end is None:
            self.container.seek(0)
            end = self._end_of_packets()
        self.container.seek(0)
        return end or 0.0

    def _end_of_packets(self) -> float | None:
        base = float(self.stream.time_base)
        stamps = ((p.pts, p.duration) for p in self.container.demux(self.stream) if p.pts is not None)
        return max((pts * base + (length * base if length else 1.0 / self.fps) for pts, length in stamps), default=None)


class _Unnamed:
    """A file without its name, which FFmpeg would take for a pattern of many files ("%03d") or an address ("http:")."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _open_file(path: Path) -> BinaryIO:
    try:
        if not path.is_file():  # also says no to pipes and devices, which could keep us waiting
            raise DecodeError("missing_media", f"there is no file {path}")
        if path.stat().st_size == 0:
            raise DecodeError("empty_media")
        return path.open("rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DecodeError("missing_media", f"{path} cannot be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _container(media: Media, options: dict[str, str]) -> Iterator[Any]:
    """Open a container, with FFmpeg's errors turned into `DecodeError`."""
    if isinstance(media, bytes) and not media:
        raise DecodeError("empty_media")
    allowed = {"format_whitelist": ",".join((*VIDEO_CONTAINERS, *PICTURE_CONTAINERS)), "protocol_whitelist": ""}
    with ExitStack() as stack:
        source: Any
        if isinstance(media, bytes):
            source = io.BytesIO(media)
        else:
            source = _Unnamed(stack.enter_context(_open_file(Path(media))))
        try:
            container = stack.enter_context(av.open(source, options={**options, **allowed}, **_LENIENT))
        except av.ArgumentError as error:
            raise DecodeError("undecodable", f"it is none of {', '.join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)}") from error
        except (av.FFmpegError, EOFError, OSError, ValueError) as error:
            raise DecodeError("undecodable", first_line(error)) from error
        yield container


def _video_stream(container: Any) -> Any:
    """Return the first video stream that is no cover picture, or else the first."""
    streams = container.streams.video
    if not streams:
        raise DecodeError("no_video_stream")
    moving = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    stream = (moving or streams)[0]
    if stream.codec_context is None:
        raise DecodeError("undecodable", "its video is of a kind that there is no decoder for")
    return stream


@contextmanager
def opened(media: Media, max_pixels: int) -> Iterator[OpenVideo]:
    """Open a media file; what FFmpeg says on the way is `DecodeError` "corrupt".

    Args:
        media: The file's bytes or its path.
        max_pixels: Largest height x width of the stored pictures.

    Yields:
        The container and its video stream.

    Raises:
        DecodeError: The file cannot be opened or used.
    """
    # FFmpeg itself must know the limit: it decodes a picture of some formats before it tells their size.
    with _container(media, {"max_pixels": str(max_pixels)}) as container:
        stream = _video_stream(container)
        height, width = (stream.height, stream.width) if stream.width else _size_without_limit(media)
        if height * width > max_pixels:
            raise DecodeError("too_large", f"{height} x {width} pixels, more than {max_pixels}")
        stream.codec_context.thread_count = 1  # loader workers are the parallelism
        try:
            yield OpenVideo(container, stream)
        except (av.FFmpegError, EOFError, OSError) as error:
            raise DecodeError("corrupt", first_line(error)) from error


def _size_without_limit(media: Media) -> tuple[int, int]:
    """Return height and width of a file whose size the limit kept FFmpeg from telling; (0, 0) if it has none."""
    with _container(media, {}) as container:
        stream = _video_stream(container)
        return stream.height, stream.width
