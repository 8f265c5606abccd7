"""Writing of frames into video files.

Shape letters: F frames, H height, W width.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

from divot_datamodules.decoding.frame_pixels import Pixels
from divot_datamodules.decoding.media_files import suffix_of
from divot_lightning.errors import UserError
from divot_lightning.io.files import write_atomically
from divot_lightning.io.output_files import make_folder, writing_to

CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif"}
"""Codec by file suffix of the container."""

VIEW_ROWS = 256
"""Clips of fewer rows are enlarged to about this many to be looked at, so that they are shown sharp."""

_FORMATS = {"mkv": "matroska"}
# Full chroma resolution wherever the codec has it: half-resolution chroma smears the edges of small clips by up to 100
# levels of 255 at 32 x 32, full chroma at the same rate stays within 2.
_PIXEL_FORMATS = {"libx264": "yuv444p", "libvpx-vp9": "yuv444p", "mpeg4": "yuv420p", "gif": "rgb8"}


def _codec_options(codec: str, crf: int) -> dict[str, str]:
    if codec == "libx264":
        # With x264's macroblock tree the bytes of 32x32 clips depended on uninitialised memory.
        return {"preset": "veryfast", "crf": str(crf), "mbtree": "0"}
    if codec == "libvpx-vp9":
        return {"crf": str(crf), "b:v": "0", "cpu-used": "8", "deadline": "realtime"}
    return {"qscale": "2"} if codec == "mpeg4" else {}


def _check_frames(video: Pixels) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1] != 3 or len(video) == 0:
        raise UserError(f"cannot write {video.dtype} {tuple(video.shape)} as a video; it must be uint8 (F, 3, H, W).")


def encode_video(
    video: Pixels,
    fps: float,
    *,
    container: str = "mp4",
    crf: int = 10,
    pixel_format: str | None = None,
) -> bytes:
    """Encode frames into the bytes of a video file; the same frames give the same bytes.

    Args:
        video: uint8 (F, 3, H, W) in [0, 255].
        fps: Presentation rate, frames per second.
        container: A key of `CODECS`.
        crf: Constant rate factor of h264 and VP9; 0 keeps a clip within 2 levels of 255, 10 looks lossless, players'
            usual value is 23.
        pixel_format: FFmpeg's name; by default full chroma resolution where the codec has it. Players on phones and in
            some browsers want "yuv420p", which needs even sides.

    Returns:
        The file's bytes.

    Raises:
        UserError: The container is unknown.
    """
    _check_frames(video)
    if container not in CODECS:
        raise UserError(f"cannot write {container!r} videos; known containers: {', '.join(CODECS)}.")
    if container == "gif":
        return _encode_gif(video, fps)
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format=_FORMATS.get(container, container)) as output:
        codec = CODECS[container]
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(av.VideoStream, output.add_stream(codec, rate=rate, options=_codec_options(codec, crf)))
        stream.height, stream.width = video.shape[2:]
        stream.pix_fmt = pixel_format or _PIXEL_FORMATS[codec]
        stream.thread_count = 1  # more threads change the bytes and cost more than they bring on short clips
        for frame in np.ascontiguousarray(video.transpose(0, 2, 3, 1)):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _encode_gif(video: Pixels, fps: float) -> bytes:
    # Pillow finds a palette for the clip; FFmpeg's gif encoder without a filter graph has a fixed one of 256 colours.
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in np.ascontiguousarray(video.transpose(0, 2, 3, 1))]
    ends = np.rint(np.arange(1, len(pictures) + 1) * 100 / fps) * 10  # gif counts in hundredths of a second
    durations = np.diff(ends, prepend=0).astype(int).tolist()
    palette = Image.fromarray(np.concatenate(list(video.transpose(0, 2, 3, 1)))).quantize(256)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    # Pillow joins equal neighbours into one frame that is shown longer: the same clip by presentation time.
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )
    return buffer.getvalue()


def write_video(path: str | Path, video: Pixels, fps: float, *, crf: int = 10, pixel_format: str | None = None) -> Path:
    """Write frames to a file whose suffix names the container: mp4, mkv, webm, avi or gif.

    The file appears under its name only when it is complete.

    Args:
        path: File to write; parent folders are made.
        video: uint8 (F, 3, H, W) in [0, 255].
        fps: Frames per second.
        crf: See `encode_video`.
        pixel_format: See `encode_video`.

    Returns:
        The path.

    Raises:
        UserError: The file cannot be written, or its suffix is not known.
    """
    path = Path(path)
    data = encode_video(video, fps, container=suffix_of(path), crf=crf, pixel_format=pixel_format)
    with writing_to(path):
        make_folder(path.parent)
        write_atomically(path, data)
    return path


def side_by_side(left: Pixels, right: Pixels) -> Pixels:
    """Join two clips of one size, uint8 (F, 3, H, W), with a white bar of two columns between them.

    Raises:
        UserError: The clips have different sizes.
    """
    if left.shape[:3] != right.shape[:3]:
        raise UserError(f"clips of {left.shape} and {right.shape} do not fit beside each other")
    return np.concatenate([left, np.full((*left.shape[:3], 2), 255, dtype=np.uint8), right], axis=3)


def write_comparison(path: Path, original: Pixels, reconstruction: Pixels, fps: float) -> Path:
    """Write a video of a clip and its reconstruction side by side, and return its path; see `write_view`."""
    return write_view(path, side_by_side(original, reconstruction), fps)


def write_view(path: Path, video: Pixels, fps: float) -> Path:
    """Write a clip as every player and browser shows it, and return its path.

    Args:
        path: File to write.
        video: uint8 (F, 3, H, W); small clips are enlarged by a whole factor.
        fps: Frames per second.
    """
    large = enlarged(video)
    # Every player knows chroma of half resolution; it needs even sides, and enlarged clips lose nothing by it.
    even = large[:, :, : large.shape[2] // 2 * 2, : large.shape[3] // 2 * 2]
    return write_video(path, even, fps, pixel_format="yuv420p")


def enlarged(video: Pixels) -> Pixels:
    """Repeat the pixels of a clip of fewer than `VIEW_ROWS` rows by a whole factor."""
    times = max(1, VIEW_ROWS // video.shape[2])
    return video.repeat(times, axis=2).repeat(times, axis=3)
