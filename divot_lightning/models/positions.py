"""Sinusoidal embeddings of times and positions, and the initial weights of a tokenizer that is trained with them.

Shape letters: N numbers, L positions, D width.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MAX_PERIOD = 100
"""The longest wavelength is 2 pi times as many positions."""


def sinusoidal_embedding(number_N: Tensor, width: int, *, max_period: float = 10_000, endpoint: bool = False) -> Tensor:
    """Embed times or positions as sines, then cosines (arXiv:1706.03762, section 3.5), (N, width) float32.

    The bits are those of diffusers' `get_timestep_embedding`, whose import takes more than a second.

    Args:
        number_N: The numbers, int or float.
        width: D; a last odd channel is zero.
        max_period: The longest wavelength is 2 pi times this, or a little less.
        endpoint: Whether the longest wavelength is exactly that: the rates are then max_period^(-i / (D / 2 - 1)), as
            in DDPM (arXiv:2006.11239), and else max_period^(-i / (D / 2)).
    """
    num_rates = width // 2
    exponent = -math.log(max_period) * torch.arange(num_rates, dtype=torch.float32, device=number_N.device)
    rates = torch.exp(exponent / max(num_rates - endpoint, 1))
    angles = number_N[:, None].float() * rates
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def sin_cos_positions(counts: tuple[int, ...], width: int) -> Tensor:
    """Return embeddings of the positions of a grid, (L, D) float32, last axis fastest.

    Each axis gets the same number of channels: sines and cosines with the wavelengths of a transformer, the longest
    about 2 pi 100 positions. Channels that are left over are zero.

    >>> sin_cos_positions((1, 8, 8), 64).shape
    torch.Size([64, 64])
    """
    each = width // (2 * len(counts)) * 2
    axes = torch.meshgrid(*(torch.arange(count) for count in counts), indexing="ij")
    embeddings = [sinusoidal_embedding(axis.flatten(), each, max_period=MAX_PERIOD, endpoint=True) for axis in axes]
    embedding = torch.cat(embeddings, dim=1)
    return nn.functional.pad(embedding, (0, width - embedding.shape[1]))


@torch.no_grad()
def init_with_sin_cos(grid_positions: Tensor, grid: int, vectors: Iterable[Tensor]) -> None:
    """Set the initial position embeddings of a small tokenizer that is trained from scratch in minutes.

    Embeddings of the grid become sines and cosines; those of frames and queries become random vectors of about half the
    size of the content. With CLIP's small initial embeddings, tokens of the toy world encode colours but hardly any
    position for the first thousand steps (docs/ablations/experiments.md). The architecture stays the same.

    Args:
        grid_positions: (grid x grid, D), set in place.
        grid: Height and width of the grid.
        vectors: Embeddings of frames and queries, set in place.
    """
    grid_positions.copy_(sin_cos_positions((1, grid, grid), grid_positions.shape[1]))
    for values in vectors:
        nn.init.normal_(values, std=0.5)
