"""Sine and cosine position embeddings, and the initial weights of a tokenizer that is trained from scratch with them.

Shape letters: L positions, D width.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MAX_PERIOD = 100
"""The longest wavelength is 2 pi times as many positions."""


def sin_cos_positions(counts: tuple[int, ...], width: int) -> Tensor:
    """Return embeddings of the positions of a grid, (L, D) float32, last axis fastest.

    Each axis gets the same number of channels: sines and cosines with the wavelengths of a transformer, the longest
    about 2 pi 100 positions. Channels that are left over are zero.

    >>> sin_cos_positions((1, 8, 8), 64).shape
    torch.Size([64, 64])
    """
    num_rates = width // (2 * len(counts))
    # diffusers' `get_timestep_embedding` is this formula, but to import it takes longer than to load a small run.
    exponent = -math.log(MAX_PERIOD) * torch.arange(num_rates, dtype=torch.float32)
    rates = torch.exp(exponent / max(num_rates - 1, 1))
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float32) for count in counts), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in axes]
    embedding = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return nn.functional.pad(embedding, (0, width - embedding.shape[1]))


@torch.no_grad()
def init_with_sin_cos(grid_positions: Tensor, grid: int, vectors: Iterable[Tensor]) -> None:
    """Set the initial position embeddings of a small tokenizer that is trained from scratch in minutes.

    Embeddings of the grid become sines and cosines; those of frames and queries become random vectors of about half the
    size of the content. With CLIP's small initial embeddings, tokens of the toy world encode colours but hardly any
    position for the first thousand steps (docs/experiments.md). The architecture stays the same.

    Args:
        grid_positions: (grid x grid, D), set in place.
        grid: Height and width of the grid.
        vectors: Embeddings of frames and queries, set in place.
    """
    grid_positions.copy_(sin_cos_positions((1, grid, grid), grid_positions.shape[1]))
    for values in vectors:
        nn.init.normal_(values, std=0.5)
