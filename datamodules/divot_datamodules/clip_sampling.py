"""Which moments of a video make a clip.

Shape letters: F frames, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from divot_datamodules.decoding import DecodeError, Media, Pixels, decode_frames, decode_image, probe


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut from videos; the defaults are Divot's 2-second clips (arXiv:2412.04432, appendix A).

    Attributes:
        height: Pixels; the short side is resized and the middle is cut out.
        width: Pixels.
        frames: Frames per clip.
        fps: Frames per second of presentation time, whatever the source's rate.
        short_videos: "refuse" counts a video shorter than one clip as a defect; "squeeze" takes the same number of
            frames from all of it, closer together in time, as long as it has that many.
    """

    height: int = 32
    width: int = 32
    frames: int = 16
    fps: float = 8.0
    short_videos: Literal["refuse", "squeeze"] = "refuse"

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames / self.fps


@dataclass(frozen=True)
class DecodedClip:
    """A clip and how it came about.

    Attributes:
        video: uint8 (F, 3, H, W).
        only_choice: Whether the source gives no other clip, so that it may be kept for the next pass.
    """

    video: Pixels
    only_choice: bool


def sample_clip_times(
    duration: float,
    source_fps: float,
    settings: ClipSettings,
    rng: np.random.Generator | None = None,
) -> tuple[list[float], bool]:
    """Chooses a clip's moments.

    Args:
        duration: Seconds of the source.
        source_fps: Its rate, which bounds by how much a short video can be squeezed.
        settings: The clip's.
        rng: Draws the start; without it the clip is the one in the middle.

    Returns:
        Seconds after the source's start, ascending, and whether there was only this choice.

    >>> times, only_choice = sample_clip_times(2.0, 30.0, ClipSettings(frames=4, fps=2))
    >>> times, only_choice
    ([0.0, 0.5, 1.0, 1.5], True)
    """
    # Half a source frame of tolerance: containers round a 2-second clip to 1.998 or 2.002 seconds.
    spare = duration - settings.seconds
    tolerance = 0.5 / max(source_fps, settings.fps)
    step = 1.0 / settings.fps
    if spare < -tolerance:
        if settings.short_videos == "refuse" or round(duration * source_fps) < settings.frames:
            raise DecodeError("too_short", f"{duration:.2f} s of {settings.seconds:.2f} s")
        step, spare = duration / settings.frames, 0.0
    only_choice = spare <= tolerance
    start = 0.0 if only_choice else spare * (0.5 if rng is None else float(rng.random()))
    return [start + index * step for index in range(settings.frames)], only_choice


def decode_clip(media: Media, settings: ClipSettings, rng: np.random.Generator | None = None) -> DecodedClip:
    """Decodes one clip of a video.

    Args:
        media: The file's bytes or its path.
        settings: The clip's.
        rng: Draws the clip's start; without it the clip is the one in the middle.
    """
    info = probe(media)
    times, only_choice = sample_clip_times(info.duration, info.fps, settings, rng)
    return DecodedClip(decode_frames(media, times, (settings.height, settings.width)), only_choice)


def image_clip(media: Media, settings: ClipSettings) -> DecodedClip:
    """Turns a picture into a clip that shows it all the time, as Divot does with images."""
    picture = decode_image(media, (settings.height, settings.width))
    return DecodedClip(np.repeat(picture[None], settings.frames, axis=0), True)
