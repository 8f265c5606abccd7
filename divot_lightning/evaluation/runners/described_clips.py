"""How a protocol describes the clips that a runner makes or reads. No torch in here."""

from typing import Any

from divot_datamodules.decoding.clip_sampling import ClipConfig

_FILTERS = {"bicubic": "bicubic interpolation", "pil_bilinear": "Pillow's bilinear interpolation"}


def describe_resize(clip: ClipConfig) -> str:
    """Return in words how frames are resized."""
    return f"short side by {_FILTERS[clip.resize]}, middle cut out"


def describe_middle_clips(clip: ClipConfig) -> dict[str, Any]:
    """Return the entries of a protocol for one clip from the middle of each video."""
    return {
        "clips": {"frames": clip.frames, "fps": clip.fps, "height": clip.height, "width": clip.width},
        "real_clips": f"the middle {clip.seconds:g} s of each video; {describe_resize(clip)}",
    }
