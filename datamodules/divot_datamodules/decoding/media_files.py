"""Opening of media files: allowed containers, choice of the stream, timing, and the reasons for refusal.

FFmpeg gets no file name and may open nothing: this module reads the file, and the container must be in a short list. So
the bytes of a sample cannot make FFmpeg open another file, address or port.
"""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.stream import Disposition

from divot_lightning.errors import first_line

Media = bytes | str | Path

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "gif", "mov", "m4v")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

VIDEO_CONTAINERS = ("mov", "matroska", "avi", "flv", "mpegts", "gif")
"""FFmpeg's names of the allowed video containers, for any suffix; "mov" includes mp4 and m4v, "matroska" includes webm.
Downloads named mp4 are sometimes flv or mpegts. None of these containers can refer to other files."""

PICTURE_CONTAINERS = ("jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe", "apng")
"""FFmpeg's names of the allowed picture formats."""

REASONS = (
    "missing_media",
    "empty_media",
    "undecodable",
    "no_video_stream",
    "too_large",
    "too_small",
    "too_narrow",
    "too_short",
    "corrupt",
)
"""Reasons for which a media file is refused: it does not exist; it is empty; it cannot be opened; it has no video; its
pictures are larger or smaller than allowed, or too long and narrow; it has no frame at a requested time; it is damaged
before that time."""

MAX_PIXELS = 7680 * 4320
"""Default for the largest picture that is decoded, height x width: 8K television."""

_BY_ITS_INDEX = {"skip_frame": "all", "probesize": "32"}
"""FFmpeg's options to open a file without decoding its first frames: 0.3 to 0.7 ms of processor time in place of 1 to
9. The frames tell nothing that the index of an mp4 does not, but for the shape of pixels, which is known as soon as one
frame is decoded."""


# Tags may not be UTF-8. PyAV 19 keeps such tags with surrogate escapes, and has no argument for it any more.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def suffix_of(name: str | Path) -> str:
    """Return the suffix of a file's name in lower case, without its dot."""
    return Path(name).suffix.lower().lstrip(".")


class DecodeError(Exception):
    """A media file cannot be decoded.

    Attributes:
        reason: One of `REASONS`.
        detail: What is wrong, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)  # both as arguments, so that the error can be pickled
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class VideoTiming:
    """Length and frame rate of a video, known before a frame is decoded.

    Attributes:
        duration: Seconds from the first picture's time stamp to the end of the last picture, from the video stream's
            header or, if it has none, from its packets. Sound that lasts longer does not count. A truncated file may
            be shorter than its header says.
        fps: Average frame rate, frames per second.
        num_frames: Number of frames in the header; 0 if it has none.
        codec: FFmpeg's name of the codec.
    """

    duration: float
    fps: float
    num_frames: int
    codec: str


@dataclass(frozen=True)
class OpenVideo:
    """An open container and its video stream.

    Attributes:
        container: PyAV's container, at its start.
        stream: The video stream; it has a decoder.
    """

    container: Any
    stream: Any

    @property
    def kind(self) -> str:
        """FFmpeg's first name for the container, as in `VIDEO_CONTAINERS` and `PICTURE_CONTAINERS`."""
        return str(self.container.format.name).split(",")[0]

    @property
    def pixel_aspect(self) -> float:
        """Width of a stored pixel divided by its height; known when a frame was decoded."""
        return float(self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio or 1)

    @property
    def start(self) -> float:
        """Time stamp of the first picture in seconds."""
        return float((self.stream.start_time or 0) * self.stream.time_base)

    @property
    def fps(self) -> float:
        """Average rate, frames per second."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def timing(self) -> VideoTiming:
        """Read the timing; afterwards the container is at its start again."""
        return VideoTiming(self._duration(), self.fps, self.stream.frames, self.stream.codec_context.name)

    def _duration(self) -> float:
        # The header of a fragmented mp4 has no number of frames, and a length from time zero, not from the first frame.
        if self.stream.duration and (self.kind == "avi" or (self.kind == "mov" and self.stream.frames)):
            return float(self.stream.duration * self.stream.time_base)
        return self._last_end() - self.start

    def _last_end(self) -> float:
        """Return the end of the last picture in seconds, from the packets after the last keyframe, or from all packets.

        The headers of mkv, webm, flv and mpegts have only the length of the whole file, sound included.
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
    """A file without its name, which FFmpeg could interpret as a pattern of files ("%03d") or an address ("http:")."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _open_file(path: Path) -> BinaryIO:
    try:
        if not path.is_file():  # false also for pipes and devices, which could block
            raise DecodeError("missing_media", f"there is no file {path}")
        if path.stat().st_size == 0:
            raise DecodeError("empty_media")
        return path.open("rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DecodeError("missing_media", f"{path} cannot be read: {first_line(error)}") from error


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


@contextmanager
def _container_of_video(media: Media, options: dict[str, str]) -> Iterator[Any]:
    """Open a container so that all of `OpenVideo`'s timing is known, and decode frames only where that needs it."""
    if _first_bytes(media)[4:8] == b"ftyp":  # an mp4 or mov
        with _container(media, options | _BY_ITS_INDEX) as container:
            if any(stream.frames for stream in container.streams.video):
                yield container
                return
        # Its index is empty, as in a fragmented mp4.
    with _container(media, options) as container:
        yield container


def _first_bytes(media: Media) -> bytes:
    if isinstance(media, bytes):
        return media[:8]
    with _open_file(Path(media)) as file:
        return file.read(8)


def _video_stream(container: Any) -> Any:
    """Return the first video stream that is not a cover picture, or else the first one."""
    streams = container.streams.video
    if not streams:
        raise DecodeError("no_video_stream")
    moving = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    stream = (moving or streams)[0]
    if stream.codec_context is None:
        raise DecodeError("undecodable", "there is no decoder for its video")
    return stream


@contextmanager
def opened(media: Media, max_pixels: int) -> Iterator[OpenVideo]:
    """Open a media file; errors of FFmpeg inside the block become `DecodeError` "corrupt".

    Args:
        media: The file's bytes or its path.
        max_pixels: Largest height x width of the stored pictures.

    Yields:
        The container and its video stream.

    Raises:
        DecodeError: The file cannot be opened or used.
    """
    # FFmpeg itself needs the limit: for some formats it decodes a picture before it knows the size.
    with _container_of_video(media, {"max_pixels": str(max_pixels)}) as container:
        stream = _video_stream(container)
        height, width = (stream.height, stream.width) if stream.width else _size_without_limit(media)
        if height * width > max_pixels:
            raise DecodeError("too_large", f"{height} x {width} pixels, more than {max_pixels}")
        stream.codec_context.thread_count = 1  # workers decode in parallel already
        # The pictures may be larger than the header says. Decoders count whole blocks, up to 64 pixels wide.
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels)}
        try:
            yield OpenVideo(container, stream)
        except (av.FFmpegError, EOFError, OSError) as error:
            raise DecodeError("corrupt", first_line(error)) from error


def _size_without_limit(media: Media) -> tuple[int, int]:
    """Return height and width of a file for which FFmpeg gives no size under the limit; (0, 0) if it has none."""
    with _container(media, {}) as container:
        stream = _video_stream(container)
        return stream.height, stream.width
