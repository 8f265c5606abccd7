"""Which moments of a video make its clips.

Shape letters: N clips, F frames, H height, W width.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from divot_datamodules.decoding.video import (
    MAX_PIXELS,
    DecodeError,
    Media,
    Pixels,
    VideoTiming,
    decode_chosen,
    decode_image,
)
from divot_lightning.errors import UserError
from divot_lightning.parts.sparse_frames import sparse_frame_indices

MAX_CLIPS = 20
"""Most clips of a video that the LLM reads, in training and evaluation (Divot section 4.1, arXiv:2412.04432)."""


@dataclass(frozen=True)
class ClipConfig:
    """How clips are cut from videos; the defaults are Divot's 2-second clips (arXiv:2412.04432, appendix A).

    Attributes:
        height: Pixels; the short side is resized and the middle is cut out.
        width: Pixels.
        frames: Frames per clip.
        fps: Frames per second of presentation time, whatever the source's rate.
        short_videos: "refuse" counts a video shorter than one clip as a defect; "squeeze" takes the same number of
            frames from all of it, closer together in time, as long as it has that many.
        sparse_frames: Decode only as many of a clip's frames, the ones that the tokenizer reads (5 of 16: numbers 0, 4,
            8, 12, 15); for stages that need no more, those with a frozen tokenizer and no de-tokenizer. None for all.
        max_pixels: Largest height x width of a source; a larger one is a defect that is not decoded.
    """

    height: int = 32
    width: int = 32
    frames: int = 16
    fps: float = 8.0
    short_videos: Literal["refuse", "squeeze"] = "refuse"
    sparse_frames: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.sparse_frames is not None and not 1 <= self.sparse_frames <= self.frames:
            raise UserError(
                f"clip.sparse_frames is {self.sparse_frames}; a clip has {self.frames} frames.\n"
                "Give the tokenizer's num_frames, or null to decode all."
            )

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames / self.fps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def frame_numbers(self) -> list[int]:
        """Which of the clip's frames are decoded."""
        return sparse_frame_indices(self.frames, self.sparse_frames or self.frames)


@dataclass(frozen=True)
class DecodedClip:
    """A clip and how it came about.

    Attributes:
        video: uint8 (F, 3, H, W); read-only, where all frames are one picture.
        is_deterministic: Whether the source gives no other clip, so that it may be kept for the next pass.
    """

    video: Pixels
    is_deterministic: bool


@dataclass(frozen=True)
class DecodedClips:
    """The clips of a video.

    Attributes:
        video: uint8 (N, F, 3, H, W).
        is_deterministic: Whether decoding again would give the same.
    """

    video: Pixels
    is_deterministic: bool


def sample_clip_times(
    duration: float,
    source_fps: float,
    settings: ClipConfig,
    rng: np.random.Generator | None = None,
) -> tuple[list[float], bool]:
    """Choose the moments of one clip.

    Args:
        duration: Seconds of the source.
        source_fps: Its rate, which bounds by how much a short video can be squeezed.
        settings: The clip's.
        rng: Draws the start; without it the clip is the one in the middle.

    Returns:
        Seconds after the source's start, ascending, and whether there was only this choice.

    >>> times, is_deterministic = sample_clip_times(2.0, 30.0, ClipConfig(frames=4, fps=2))
    >>> times, is_deterministic
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
    is_deterministic = spare <= tolerance
    start = 0.0 if is_deterministic else spare * (0.5 if rng is None else float(rng.random()))
    return [start + index * step for index in range(settings.frames)], is_deterministic


def clip_times(duration: float, clip: ClipConfig, max_clips: int = MAX_CLIPS) -> list[list[float]]:
    """Choose the moments of a whole video's clips, by the rule of the released evaluation.

    Up to ``max_clips`` consecutive clips cover the video, and its last piece is squeezed: the same number of frames,
    closer together. Of a longer video each of ``max_clips`` equal segments gives the clip at its start.

    Args:
        duration: Seconds of the video.
        clip: Frames and rate of a clip.
        max_clips: Most clips.

    Returns:
        For each clip its moments, in seconds after the video's start, ascending.

    >>> clip_times(3.0, ClipConfig(frames=4, fps=2))
    [[0.0, 0.5, 1.0, 1.5], [2.0, 2.25, 2.5, 2.75]]
    >>> clip_times(10.0, ClipConfig(frames=4, fps=2), max_clips=2)
    [[0.0, 0.5, 1.0, 1.5], [5.0, 5.5, 6.0, 6.5]]
    """
    step, tolerance = 1.0 / clip.fps, 0.5 / clip.fps
    if duration >= max_clips * clip.seconds:
        return _steps([index * duration / max_clips for index in range(max_clips)], step, clip.frames)
    count = max(1, ceil((duration - tolerance) / clip.seconds))
    start = (count - 1) * clip.seconds
    rest = duration - start
    last_step = step if rest >= clip.seconds - tolerance else rest / clip.frames
    before = _steps([index * clip.seconds for index in range(count - 1)], step, clip.frames)
    return [*before, *_steps([start], last_step, clip.frames)]


def _steps(starts: list[float], step: float, count: int) -> list[list[float]]:
    return [[start + index * step for index in range(count)] for start in starts]


def decode_clip(media: Media, settings: ClipConfig, rng: np.random.Generator | None = None) -> DecodedClip:
    """Decode one clip of a video.

    Args:
        media: The file's bytes or its path.
        settings: The clip's.
        rng: Draws the clip's start; without it the clip is the one in the middle.
    """
    clips = decode_clips(media, settings, rng)
    return DecodedClip(clips.video[0], clips.is_deterministic)


def decode_clips(
    media: Media, settings: ClipConfig, rng: np.random.Generator | None = None, *, max_clips: int = 1
) -> DecodedClips:
    """Decode the clips of a video in one pass over the file.

    Args:
        media: The file's bytes or its path.
        settings: The clips'.
        rng: Draws the start of a single clip.
        max_clips: 1 for one clip, anywhere in the video; more for clips that stand for the whole video, by the rule of
            `clip_times`, where nothing is drawn.
    """
    is_deterministic = True

    def choose(timing: VideoTiming) -> list[float]:
        nonlocal is_deterministic
        one, is_deterministic = sample_clip_times(
            timing.duration, timing.fps, settings, rng if max_clips == 1 else None
        )
        clips = [one]
        if max_clips > 1 and not is_deterministic:
            clips, is_deterministic = clip_times(timing.duration, settings, max_clips), True
        return [moments[number] for moments in clips for number in settings.frame_numbers]

    frames = decode_chosen(media, choose, settings.size, max_pixels=settings.max_pixels)
    return DecodedClips(frames.reshape(-1, len(settings.frame_numbers), *frames.shape[1:]), is_deterministic)


def image_picture(media: Media, settings: ClipConfig) -> Pixels:
    """Decode a picture, uint8 (3, H, W); a clip of it shows it in all frames."""
    return decode_image(media, settings.size, max_pixels=settings.max_pixels)


def image_clip(media: Media, settings: ClipConfig) -> DecodedClip:
    """Turn a picture into a clip that shows it all the time, as Divot does with images; the frames share memory."""
    picture = image_picture(media, settings)
    return DecodedClip(np.broadcast_to(picture, (len(settings.frame_numbers), *picture.shape)), True)
