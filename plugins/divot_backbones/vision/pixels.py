"""Frames as vision models expect them: resized to a square, with each channel normalised.

Letters: N images, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def resize(images_N3HW: Tensor, size: int) -> Tensor:
    """Resize images as torchvision and Pillow do: bicubic, antialiased, pixel centres aligned.

    Args:
        images_N3HW: Float, any height and width.
        size: Target height and width in pixels. Images of this size are returned as they are.

    Returns:
        Float (N, 3, size, size), of the same dtype; it is computed in float32.
    """
    if images_N3HW.shape[-2:] == (size, size):
        return images_N3HW
    resized = functional.interpolate(images_N3HW.float(), (size, size), mode="bicubic", antialias=True)
    return resized.to(images_N3HW.dtype)


def resize_as_released(images_N3HW: Tensor, size: int) -> Tensor:
    """Resize images as Divot's released encoder does: bicubic with the corner pixels aligned.

    Before shrinking, each axis is blurred with a Gaussian of standard deviation ``(factor - 1) / 2`` pixels, where
    ``factor`` is the old size over the new one. This is not torch's ``antialias=True``, which uses another cubic and
    other pixel centres. Weights work best with the resizing that they were trained with.

    Args:
        images_N3HW: Float, any height and width.
        size: Target height and width in pixels. Images of this size are returned as they are.

    Returns:
        Float (N, 3, size, size).
    """
    height, width = images_N3HW.shape[-2:]
    if (height, width) == (size, size):
        return images_N3HW
    factors = (height / size, width / size)
    if max(factors) > 1.0:
        images_N3HW = _blur_for_shrinking(images_N3HW, factors)
    return functional.interpolate(images_N3HW, (size, size), mode="bicubic", align_corners=True)


def normalize(images_N3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise each channel.

    Args:
        images_N3HW: Float in [-1, 1].
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel, for values in [0, 1].

    Returns:
        Float of the same shape, about zero mean and unit variance on natural images.
    """
    mean_C = images_N3HW.new_tensor(mean)[:, None, None]
    std_C = images_N3HW.new_tensor(std)[:, None, None]
    return ((images_N3HW + 1.0) / 2.0 - mean_C) / std_C


def _blur_for_shrinking(images_N3HW: Tensor, factors: tuple[float, float]) -> Tensor:
    height, width = _kernel_width(factors[0]), _kernel_width(factors[1])
    pads = (width // 2, width // 2, height // 2, height // 2)
    planes = functional.pad(images_N3HW.flatten(0, 1)[:, None], pads, mode="reflect")
    planes = functional.conv2d(planes, _blur_kernel(factors[0], height, planes)[None, None, :, None])
    planes = functional.conv2d(planes, _blur_kernel(factors[1], width, planes)[None, None, None, :])
    return planes[:, 0].unflatten(0, images_N3HW.shape[:2])


def _blur_kernel(factor: float, width: int, like: Tensor) -> Tensor:
    """Return a Gaussian of ``width`` weights that sum to 1; its standard deviation is at least 0.001 pixels."""
    sigma = max((factor - 1.0) / 2.0, 1e-3)
    offsets = torch.arange(width, dtype=like.dtype, device=like.device) - width // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def _kernel_width(factor: float) -> int:
    """Return an odd width of about four standard deviations, at least 3."""
    return int(max(2.0 * (factor - 1.0), 3.0)) | 1
