"""Facts about picture files that FFmpeg does not provide, read with Pillow."""

import io

import av
import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from divot_datamodules.decoding.frame_pixels import BY_EXIF, UPRIGHT, Orientation
from divot_datamodules.decoding.media_files import DecodeError
from divot_lightning.errors import first_line

_ANIMATED = 0b10
"""Flag for animation in a webp's extended header, at byte 20 (RFC 9649, section 2.7.1)."""


def exif_orientation(data: bytes) -> Orientation | None:
    """Read the orientation of a jpeg or webp; return None for other formats, whose frames have it.

    Args:
        data: The picture's bytes.
    """
    if not data.startswith((b"\xff\xd8", b"RIFF")):
        return None
    if b"Exif" not in data and b"EXIF" not in data:
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return BY_EXIF.get(picture.getexif().get(Base.Orientation, 1), UPRIGHT)
    except Exception:  # a broken EXIF block, for which Pillow raises many types of errors, is ignored
        return UPRIGHT


def first_of_animation(data: bytes, max_pixels: int) -> av.VideoFrame | None:
    """Decode the first picture of an animated webp, which FFmpeg cannot decode; return None for any other file.

    Args:
        data: The file's bytes.
        max_pixels: Largest height x width.

    Raises:
        DecodeError: The picture is too large or damaged.
    """
    if data[12:16] != b"VP8X" or not data[20] & _ANIMATED:
        return None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.height * picture.width > max_pixels:
                raise DecodeError("too_large", f"{picture.height} x {picture.width} pixels, more than {max_pixels}")
            return av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DecodeError("corrupt", first_line(error)) from error
