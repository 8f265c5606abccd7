"""Sine and cosine positions, and how a tokenizer that starts from nothing begins with them.

Shape letters: L positions, D width.
"""

from collections.abc import Iterable

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn


def sin_cos_positions(counts: tuple[int, ...], width: int) -> Tensor:
    """Return embeddings of a grid's positions, (L, D) float32, last axis fastest; an equal share of D for each axis.

    Sines and cosines have the wavelengths of a transformer, with a longest of 2 pi 100 positions; channels that do not
    divide evenly are zero.

    >>> sin_cos_positions((1, 8, 8), 64).shape
    torch.Size([64, 64])
    """
    share = width // (2 * len(counts)) * 2
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float32) for count in counts), indexing="ij")
    embedding = torch.cat([get_timestep_embedding(axis.flatten(), share, max_period=100) for axis in axes], dim=1)
    return nn.functional.pad(embedding, (0, width - embedding.shape[1]))


@torch.no_grad()
def init_with_sin_cos(grid_positions: Tensor, grid: int, vectors: Iterable[Tensor]) -> None:
    """Set the initial positions of a tokenizer that is trained from nothing in minutes.

    Positions of the grid start as sines and cosines, those of frames and queries as vectors of half the content's size.
    With CLIP's small initial weights, tokens of the toy world hold colours but hardly any position for the first
    thousand steps (docs/experiments.md). The architecture is the same.

    Args:
        grid_positions: (grid x grid, D), set in place.
        grid: Height and width in places.
        vectors: Positions of frames and queries, set in place.
    """
    grid_positions.copy_(sin_cos_positions((1, grid, grid), grid_positions.shape[1]))
    for values in vectors:
        nn.init.normal_(values, std=0.5)


@torch.no_grad()
def init_vit(vit: nn.Module, grid: int) -> None:
    """Start the layers of CLIP's ViT as torch's layers do, and its positions as sines and cosines.

    For a ViT that is trained as well, see `init_with_sin_cos`.

    Args:
        vit: Set in place.
        grid: Height and width in patches.
    """
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    embedding = vit.get_submodule("embeddings.position_embedding")
    assert isinstance(embedding, nn.Embedding)
    # Place 0 is the class token's.
    embedding.weight[1:] = sin_cos_positions((1, grid, grid), embedding.embedding_dim)
