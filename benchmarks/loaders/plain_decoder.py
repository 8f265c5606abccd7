"""The decoder that one writes without this library: PyAV, one seek to the keyframe before the clip.

It imports nothing of this library, so that it also runs in the environments of other loaders.

Shape letters: F frames, H height, W width.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

FRAMES, FPS = 16, 8.0
"""Frames of a clip and their rate, as in Divot (arXiv:2412.04432, appendix A)."""


def decode_plainly(media: Path | bytes, times: Sequence[float] | float, size: int) -> np.ndarray:
    """Seek once, decode up to the last needed frame, and convert the needed ones alone.

    Args:
        media: An mp4 file, or its bytes.
        times: Seconds of the needed frames, ascending; or one number in [0, 1) that places a clip in the video.
        size: Pixels of the short side; the centre is cropped.

    Returns:
        uint8 (F, 3, size, size).
    """
    with av.open(io.BytesIO(media) if isinstance(media, bytes) else str(media)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if isinstance(times, float):
            duration = (stream.duration or 0) * float(stream.time_base or 1)
            times = placed(times, duration)
        reformatter = VideoReformatter()
        pictures = [converted(frame, reformatter, size) for frame in frames_at(container, stream, times)]
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def placed(fraction: float, duration: float) -> list[float]:
    """Return the times of a clip that begins at a fraction of all possible moments."""
    start = fraction * max(0.0, duration - FRAMES / FPS)
    return [start + number / FPS for number in range(FRAMES)]


def frames_at(container: Any, stream: Any, times: Sequence[float]) -> Iterator[av.VideoFrame]:
    """Yield the frame that is shown at each time."""
    base, start, left = float(stream.time_base), stream.start_time or 0, list(times)
    container.seek(start + int(left[0] / base), stream=stream)
    shown: Any = None
    for frame in container.decode(stream):
        now = (frame.pts - start) * base
        while left and shown is not None and now > left[0] + 1e-6:
            yield shown
            left.pop(0)
        if not left:
            return
        shown = frame
    yield from (shown for _ in left)


def converted(frame: av.VideoFrame, reformatter: VideoReformatter, size: int) -> np.ndarray:
    """Return a frame as RGB (size, size, 3): resized, and cropped at its centre."""
    scale = size / min(frame.height, frame.width)
    width, height = round(frame.width * scale), round(frame.height * scale)
    picture = reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return picture[top : top + size, left : left + size]
