"""Convert pixels between storage (uint8) and models (float in [-1, 1])."""

import torch
from torch import Tensor


def to_unit_range(video: Tensor) -> Tensor:
    """Convert stored pixels to model input.

    Args:
        video: Any shape, uint8 in [0, 255].

    Returns:
        The same shape, float32 in [-1, 1].

    >>> to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return video.to(torch.float32) / 127.5 - 1.0


def to_uint8(video: Tensor) -> Tensor:
    """Convert model output to storable pixels; values outside the range are clipped.

    Args:
        video: Any shape, float, nominally in [-1, 1].

    Returns:
        The same shape, uint8 in [0, 255].

    >>> to_uint8(torch.tensor([-3.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    return ((video.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
