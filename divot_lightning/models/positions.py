"""Sine and cosine position embeddings, and the initial weights of a tokenizer that is trained from scratch with them.

Shape letters: L positions, D width.
"""

from collections.abc import Iterable

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn


def sin_cos_positions(counts: tuple[int, ...], width: int) -> Tensor:
    """Return embeddings of the positions of a grid, (L, D) float32, last axis fastest.

    Each axis gets the same number of channels: sines and cosines with the wavelengths of a transformer, the longest
    about 2 pi 100 positions. Channels that are left over are zero.

    >>> sin_cos_positions((1, 8, 8), 64).shape
    torch.Size([64, 64])
    """
    axis_width = width // (2 * len(counts)) * 2
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float32) for count in counts), indexing="ij")
    # diffusers divides by the number of frequencies less this shift; a single frequency is 1.
    settings = {"max_period": 100, "downscale_freq_shift": int(axis_width > 2)}
    embedding = torch.cat([get_timestep_embedding(axis.flatten(), axis_width, **settings) for axis in axes], dim=1)
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
