"""Encode clips as moving pictures inside a page.

Shape letters: F frames, H height, W width.
"""

import base64
import io

import numpy as np
from PIL import Image

from divot_lightning.errors import UserError
from divot_lightning.experiments.report.content import Pixels

LOSSLESS_PIXELS = 128 * 128
"""Frames with more pixels are compressed with small losses, since a page holds many clips."""
QUALITY = 80


def webp_bytes(video: Pixels, frames_per_second: float) -> bytes:
    """Encode a clip as an animated WebP that repeats for ever; small frames are compressed without losses.

    Args:
        video: uint8 (F, 3, H, W).
        frames_per_second: Presentation rate.

    Returns:
        The bytes of the file, in the size of the clip; the page enlarges it.

    Raises:
        UserError: The clip has another dtype or shape.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1] != 3 or not len(video):
        raise UserError(f"a moving picture must be uint8 (F, 3, H, W), not {video.dtype} {video.shape}")
    frames = [Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))) for frame in video]
    buffer = io.BytesIO()
    duration = round(1000 / frames_per_second)
    small = frames[0].width * frames[0].height <= LOSSLESS_PIXELS
    form = {"lossless": True} if small else {"quality": QUALITY}
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0, method=4, **form)
    return buffer.getvalue()


def data_uri(video: Pixels, frames_per_second: float) -> str:
    """Return a clip as the `src` of an image."""
    return "data:image/webp;base64," + base64.b64encode(webp_bytes(video, frames_per_second)).decode("ascii")
