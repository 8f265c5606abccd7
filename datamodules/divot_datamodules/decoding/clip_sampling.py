"""Choice of the times at which the frames of a clip are taken from a video, and their decoding.

Shape letters: N clips, F frames, H height, W width.
"""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

import numpy as np

from divot_datamodules.decoding.frame_pixels import Resize
from divot_datamodules.decoding.video import (
    MAX_PIXELS,
    DecodeError,
    Media,
    Pixels,
    VideoTiming,
    decode_frames,
    decode_image,
    shown_size,
)
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.sparse_frames import sparse_frame_indices

MAX_CLIPS = 20
"""Most clips of a video that the LLM reads, in training and evaluation (Divot, arXiv:2412.04432, section 4.1)."""


@dataclass(frozen=True)
class ClipConfig:
    """Settings of the clips that are cut from videos; the defaults are Divot's 2-second clips (appendix A).

    Attributes:
        height: Pixels; the short side is resized and the centre is cropped.
        width: Pixels.
        frames: Frames per clip.
        fps: Frames per second of presentation time, at any frame rate of the source.
        short_videos: "refuse" skips a video that is shorter than one clip. "squeeze" takes the same number of frames
            from all of it, closer together in time, if it has that many.
        sparse_frames: Decode only this number of a clip's frames, the ones that the tokenizer reads (5 of 16: numbers
            0, 4, 8, 12, 15); for stages with a frozen tokenizer and no de-tokenizer, which need no others. None decodes
            all.
        max_pixels: Largest height x width of a source; a larger one is skipped and not decoded.
        cover: How several clips cover a video that is shorter than all of them together: "consecutive" clips, as many
            as fit, or always the largest number, in "equal" segments with frames closer together, as the released
            instruction tuning has it.
        random_starts: As the released training does, start each clip of a segment at a random time at which it still
            fits into it, and the first of consecutive clips up to 1 / `fps` seconds later, so that the others follow
            later too. Without it, clips start at the beginning of the segment or of the video.
        min_side: Shortest side of a video in pixels; a smaller one is skipped. The released scripts have 100.
        min_picture_side: The same for pictures; 200 in the released scripts.
        min_aspect: Smallest ratio of the short side to the long one; the released scripts have 0.3.
        resize: Filter that resizes pictures: "bicubic" (swscale), or "pil_bilinear", which with torchvision's rounding
            of sizes and crops is the released one.
    """

    height: int = 32
    width: int = 32
    frames: int = 16
    fps: float = 8.0
    short_videos: Literal["refuse", "squeeze"] = "refuse"
    sparse_frames: int | None = None
    max_pixels: int = MAX_PIXELS
    cover: Literal["consecutive", "equal"] = "consecutive"
    random_starts: bool = False
    min_side: int = 1
    min_picture_side: int = 1
    min_aspect: float = 0.0
    resize: Resize = "bicubic"

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames", "max_pixels", "min_side", "min_picture_side"):
            require_at_least(1, "clip.", **{name: getattr(self, name)})
        if not 0 < self.fps < inf:
            raise UserError(f"clip.fps is {self.fps}; it must be above 0.")
        if not 0 <= self.min_aspect <= 1:
            raise UserError(f"clip.min_aspect is {self.min_aspect}; short side / long side is between 0 and 1.")
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
        """Numbers of the clip's frames that are decoded."""
        return sparse_frame_indices(self.frames, self.sparse_frames or self.frames)


@dataclass(frozen=True)
class DecodedClips:
    """The clips of a video, or one clip.

    Attributes:
        video: uint8 (N, F, 3, H, W), or (F, 3, H, W) for one clip; read-only if all frames are one picture.
        is_deterministic: Whether decoding again would give the same clips, so that they may be kept for later passes.
    """

    video: Pixels
    is_deterministic: bool


def sample_clip_times(
    duration: float,
    source_fps: float,
    config: ClipConfig,
    rng: np.random.Generator | None = None,
) -> tuple[list[float], bool]:
    """Choose the times of one clip's frames.

    Args:
        duration: Length of the source in seconds.
        source_fps: Frame rate of the source, which limits how much a short video can be squeezed.
        config: Settings of the clip.
        rng: Samples the start; without it the clip is in the middle.

    Returns:
        Seconds after the source's start, ascending, and whether this was the only choice.

    >>> times, is_deterministic = sample_clip_times(2.0, 30.0, ClipConfig(frames=4, fps=2))
    >>> times, is_deterministic
    ([0.0, 0.5, 1.0, 1.5], True)
    """
    # Half a source frame of tolerance: containers round a 2-second clip to 1.998 or 2.002 seconds.
    spare = duration - config.seconds
    tolerance = 0.5 / max(source_fps, config.fps)
    if spare < -tolerance:
        if config.short_videos == "refuse" or round(duration * source_fps) < config.frames:
            raise DecodeError("too_short", f"{duration:.2f} s of {config.seconds:.2f} s")
        start, is_deterministic = _first_start(config, rng)
        step = (duration - start) / config.frames
    else:
        step, is_deterministic = 1.0 / config.fps, spare <= tolerance
        start = 0.0 if is_deterministic else spare * (0.5 if rng is None else float(rng.random()))
    return [start + index * step for index in range(config.frames)], is_deterministic


def clip_times(
    duration: float, clip: ClipConfig, max_clips: int = MAX_CLIPS, rng: np.random.Generator | None = None
) -> list[list[float]]:
    """Choose the times of a whole video's clips, by the rule of the released evaluation.

    Up to ``max_clips`` consecutive clips cover the video. The last one is squeezed into the remaining time: the same
    number of frames, closer together. A longer video is split into ``max_clips`` equal segments, each with a clip at
    its start; with `clip.cover` "equal" a shorter one as well, whose clips then have their frames closer together.

    Args:
        duration: Seconds of the video.
        clip: Settings of the clips.
        max_clips: Most clips.
        rng: Samples the starts of clips, if `clip.random_starts` is set.

    Returns:
        For each clip the times of its frames, in seconds after the video's start, ascending.

    >>> clip_times(3.0, ClipConfig(frames=4, fps=2))
    [[0.0, 0.5, 1.0, 1.5], [2.0, 2.25, 2.5, 2.75]]
    >>> clip_times(10.0, ClipConfig(frames=4, fps=2), max_clips=2)
    [[0.0, 0.5, 1.0, 1.5], [5.0, 5.5, 6.0, 6.5]]
    """
    longer = duration >= max_clips * clip.seconds
    if not longer and clip.cover == "consecutive":
        return _consecutive(duration, clip, rng)
    starts = [index * duration / max_clips for index in range(max_clips)]
    if longer and clip.random_starts and rng is not None:
        spare = duration / max_clips - clip.seconds
        starts = [start + spare * float(rng.random()) for start in starts]
    return _steps(starts, 1.0 / clip.fps if longer else duration / max_clips / clip.frames, clip.frames)


def _consecutive(duration: float, clip: ClipConfig, rng: np.random.Generator | None) -> list[list[float]]:
    """Choose the times of consecutive clips that cover a video; the last one is squeezed into the rest."""
    step, tolerance = 1.0 / clip.fps, 0.5 / clip.fps
    first, _ = _first_start(clip, rng)
    count = max(1, ceil((duration - first - tolerance) / clip.seconds))
    starts = [first + index * clip.seconds for index in range(count)]
    rest = duration - starts[-1]
    last_step = step if rest >= clip.seconds - tolerance else rest / clip.frames
    return [*_steps(starts[:-1], step, clip.frames), *_steps(starts[-1:], last_step, clip.frames)]


def _first_start(clip: ClipConfig, rng: np.random.Generator | None) -> tuple[float, bool]:
    """Choose the start of the first of consecutive clips; return whether it is the only choice, too."""
    if not clip.random_starts or rng is None:
        return 0.0, True
    return float(rng.random()) / clip.fps, False


def _steps(starts: list[float], step: float, count: int) -> list[list[float]]:
    return [[start + index * step for index in range(count)] for start in starts]


def decode_clip(media: Media, config: ClipConfig, rng: np.random.Generator | None = None) -> DecodedClips:
    """Decode one clip of a video.

    Args:
        media: The file's bytes or its path.
        config: Settings of the clip.
        rng: Samples the clip's start; without it the clip is in the middle.

    Returns:
        The clip, uint8 (F, 3, H, W).
    """
    clips = decode_clips(media, config, rng)
    return DecodedClips(clips.video[0], clips.is_deterministic)


def decode_clips(
    media: Media, config: ClipConfig, rng: np.random.Generator | None = None, *, max_clips: int = 1
) -> DecodedClips:
    """Decode the clips of a video in one pass over the file.

    Args:
        media: The file's bytes or its path.
        config: Settings of the clips.
        rng: Samples the start of a single clip, and those of several if `config.random_starts` is set.
        max_clips: 1 for one clip, anywhere in the video; more for clips that cover the whole video, by the rule of
            `clip_times`.

    Returns:
        The clips, uint8 (N, F, 3, H, W).
    """
    is_deterministic = True

    def choose(timing: VideoTiming) -> list[float]:
        nonlocal is_deterministic
        one, is_deterministic = sample_clip_times(timing.duration, timing.fps, config, rng if max_clips == 1 else None)
        clips, is_random = [one], config.random_starts and rng is not None
        if max_clips > 1 and (not is_deterministic or is_random or config.cover == "equal"):
            clips = clip_times(timing.duration, config, max_clips, rng)
            moves = config.cover == "consecutive" or timing.duration > max_clips * config.seconds
            is_deterministic = not (is_random and moves)
        return [times[number] for times in clips for number in config.frame_numbers]

    _refuse_small(media, config, config.min_side)
    frames = decode_frames(media, choose, config.size, max_pixels=config.max_pixels, resize=config.resize)
    return DecodedClips(frames.reshape(-1, len(config.frame_numbers), *frames.shape[1:]), is_deterministic)


def image_picture(media: Media, config: ClipConfig) -> Pixels:
    """Decode a picture: uint8 (3, H, W). All frames of its clip are this picture."""
    _refuse_small(media, config, config.min_picture_side)
    return decode_image(media, config.size, max_pixels=config.max_pixels, resize=config.resize)


def _refuse_small(media: Media, config: ClipConfig, min_side: int) -> None:
    if min_side <= 1 and config.min_aspect == 0:
        return
    height, width = shown_size(media, max_pixels=config.max_pixels)
    short, long = min(height, width), max(height, width)
    if short < min_side:
        raise DecodeError("too_small", f"{height} x {width} pixels; the shortest side allowed is {min_side}")
    if short < config.min_aspect * long:
        raise DecodeError("too_narrow", f"{height} x {width} pixels; min_aspect allows {config.min_aspect}")


def image_clip(media: Media, config: ClipConfig) -> DecodedClips:
    """Decode a picture into a clip in which each frame is the picture, as in Divot; the frames share memory."""
    picture = image_picture(media, config)
    return DecodedClips(np.broadcast_to(picture, (len(config.frame_numbers), *picture.shape)), True)
