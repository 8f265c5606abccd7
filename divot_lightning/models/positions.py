"""Sine and cosine positions, and how a tokenizer that starts from nothing begins with them.

Shape letters: L positions, D width.
"""

from typing import TYPE_CHECKING

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

if TYPE_CHECKING:
    from divot_lightning.models.tokenizer import VideoTokenizer


def sin_cos_positions(counts: tuple[int, ...], width: int) -> Tensor:
    """Returns embeddings of a grid's positions, (L, D) float32, last axis fastest; an equal share of D for each axis.

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
def start_with_positions(tokenizer: "VideoTokenizer") -> None:
    """Sets the initial weights of a tokenizer that is trained from nothing, its ViT included, in minutes.

    Learned positions start as sines and cosines (grid) or as vectors of half the content's size (frames, queries), and
    the ViT's layers start as torch's layers do. With CLIP's small initial weights, tokens of the toy world hold colours
    but hardly any position for the first thousand steps (docs/experiments.md). The architecture is the same.

    Args:
        tokenizer: Changed in place; a frozen ViT is left alone.
    """
    grid = tokenizer.config.pool_size
    parts = tokenizer.spatiotemporal
    parts.grid_positions.copy_(sin_cos_positions((1, grid, grid), parts.grid_positions.shape[1]))
    frames = (parts.frame_positions, tokenizer.temporal.frame_positions)
    queries = getattr(tokenizer.to_tokens, "queries", None)
    for values in frames if queries is None else (*frames, queries):
        nn.init.normal_(values, std=0.5)
    if not tokenizer.config.vision.frozen:
        _start_vit(tokenizer.vision.model, tokenizer.config.vision.grid_size)


def _start_vit(vit: nn.Module, grid: int) -> None:
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    embedding = vit.get_submodule("embeddings.position_embedding")
    assert isinstance(embedding, nn.Embedding)
    # Place 0 is the class token's.
    embedding.weight[1:] = sin_cos_positions((1, grid, grid), embedding.embedding_dim)
