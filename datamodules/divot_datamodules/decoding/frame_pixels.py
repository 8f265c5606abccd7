"""Decoded frames to RGB pixels as a player shows them: turned, with square pixels, resized and cut out.

Shape letters: H height, W width.
"""

import struct
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from divot_datamodules.decoding.media_files import MAX_PIXELS, DecodeError

Pixels = NDArray[np.uint8]


BILINEAR, BICUBIC = 2, 4
"""swscale's flags of the filters."""

EXACT = 0x40000 | 0x2000
"""swscale's flags for accurate rounding and for chroma at full resolution. Without them pictures of 10 and 12 bits come
out 2 levels of 255 too dark in the mean; with them within 0.6. Those of 8 bits are within 1.4 without."""


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes the shown one: first the swap of its axes, then the flips.

    Attributes:
        swap: Rows become columns.
        flip_x: Left and right change places.
        flip_y: Top and bottom change places.
    """

    swap: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def __call__(self, picture: Pixels) -> Pixels:
        """Apply it to (H, W, 3)."""
        turned = picture.swapaxes(0, 1) if self.swap else picture
        return turned[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after it; the same call gives those before it."""
        return (width, height) if self.swap else (height, width)


UPRIGHT = Orientation()

BY_EXIF = {
    1: UPRIGHT,
    2: Orientation(flip_x=True),
    3: Orientation(flip_x=True, flip_y=True),
    4: Orientation(flip_y=True),
    5: Orientation(swap=True),
    6: Orientation(swap=True, flip_x=True),
    7: Orientation(swap=True, flip_x=True, flip_y=True),
    8: Orientation(swap=True, flip_y=True),
}
"""By the number that EXIF has for it (CIPA DC-008, section 4.6.4)."""

_BY_QUARTER_TURNS = (UPRIGHT, BY_EXIF[8], BY_EXIF[3], BY_EXIF[6])
"""Counterclockwise."""


def matrix_orientation(matrix: bytes) -> Orientation:
    """Read a display matrix: nine native int32, of which the 1st, 2nd, 4th and 5th turn and flip.

    They say x' = a x + c y and y' = b x + d y (ISO/IEC 14496-12, section 6.2.2); angles between quarter turns are
    taken for the nearest one.
    """
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if abs(b) > abs(a):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def frame_orientation(frame: Any) -> Orientation:
    """Read the orientation that comes with a frame."""
    try:
        return matrix_orientation(bytes(frame.side_data["DISPLAYMATRIX"]))
    except KeyError:
        return UPRIGHT
    except ValueError:  # PyAV does not know all kinds of side data; without the matrix, a flip is not known
        return _BY_QUARTER_TURNS[round(frame.rotation / 90) % 4]


def covering_size(height: int, width: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the smallest (height, width) of the same aspect that covers `size`.

    Raises:
        DecodeError: It is far too large, since one side is so much shorter than the other.

    >>> covering_size(720, 1280, (64, 64))
    (64, 114)
    >>> covering_size(30, 40, None)
    (30, 40)
    """
    if size is not None:
        scale = max(size[0] / height, size[1] / width)
        height, width = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if height * width > MAX_PIXELS:
        raise DecodeError("too_large", f"{height} x {width} pixels when resized, more than {MAX_PIXELS}")
    return height, width


class FrameConverter:
    """Turns decoded frames into RGB pixels of one size; keeps the scaler, which costs more than a small frame.

    Attributes:
        size: Height and width: the short side is resized and the middle is cut out; None for what is shown.
        pixel_aspect: Width of a stored pixel over its height.
        orientation: Of all frames; None reads that of each.
    """

    def __init__(
        self, size: tuple[int, int] | None, pixel_aspect: float = 1.0, orientation: Orientation | None = None
    ) -> None:
        self.size, self.pixel_aspect, self.orientation = size, pixel_aspect, orientation
        self.reformatter = VideoReformatter()
        self.orientations: dict[int, Orientation] = {}
        self.deep: bool | None = None

    def shown_size(self, frame: Any) -> tuple[int, int]:
        """Return height and width of a frame as it is shown."""
        width = max(1, round(frame.width * self.pixel_aspect))
        return self._turn(frame).shape(frame.height, width)

    def __call__(self, frame: Any) -> Pixels:
        """Return uint8 (3, H, W) in [0, 255], RGB."""
        turn = self._turn(frame)
        height, width = turn.shape(*covering_size(*self.shown_size(frame), self.size))
        # swscale widens its filter when it shrinks, so that bicubic is free of aliasing in both directions. One thread:
        # threads of its own give the same bytes and, on small frames, cost far more than they bring.
        interpolation = BILINEAR if (height, width) == (frame.height, frame.width) else BICUBIC
        if self._is_deep(frame):
            interpolation |= EXACT
        rgb = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=interpolation, threads=1
        )
        picture = turn(cast(Pixels, rgb.to_ndarray()))
        if self.size is not None:
            top, left = (picture.shape[0] - self.size[0]) // 2, (picture.shape[1] - self.size[1]) // 2
            picture = picture[top : top + self.size[0], left : left + self.size[1]]
        return picture.transpose(2, 0, 1)

    def _is_deep(self, frame: Any) -> bool:
        if self.deep is None:  # a stream keeps its depth
            self.deep = frame.format.components[0].bits > 8
        return self.deep

    def _turn(self, frame: Any) -> Orientation:
        if self.orientation is not None:
            return self.orientation
        angle = frame.rotation  # costs far less than the matrix, which is read once for each angle that comes
        if angle not in self.orientations:
            self.orientations[angle] = frame_orientation(frame)
        return self.orientations[angle]
