"""The transformers within and across the frames of a clip.

Shape letters: N frames of all clips (batch times frames), C channels, h w grid, B batch, F frames, D width,
K context tokens, E their width.
"""

from typing import TypeVar

from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from divot_backbones.denoisers.dynamicrafter.attention import Attention, TwoBranchAttention

NORM_EPS = 1e-6
"""Epsilon of the group norms in front of the transformers, as released; those of the convolutions use 1e-5."""

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zero_init(layer: Layer) -> Layer:
    """Zero the last layer of a residual branch, so that the branch changes nothing when training starts."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context (or self-attention again) and a gated MLP, each pre-norm and residual.

    Args:
        width: Width D of the sequence.
        heads: Attention heads.
        head_dim: Width of a head.
        context_dim: Width E of the context; None for a second self-attention.
        context_split: Tokens of the context's first branch; None for one branch.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, context_dim: int | None = None, context_split: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_dim)
        self.norm2 = nn.LayerNorm(width)
        if context_dim is None or context_split is None:
            self.attn2 = Attention(width, heads, head_dim, context_dim)
        else:
            self.attn2 = TwoBranchAttention(width, heads, head_dim, context_dim, context_split)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, activation_fn="geglu")

    def forward(self, state_NLD: Tensor, context_BKE: Tensor | None = None) -> Tensor:
        """Return sequences of the same shape."""
        state_NLD = state_NLD + self.attn1(self.norm1(state_NLD))
        state_NLD = state_NLD + self.attn2(self.norm2(state_NLD), context_BKE)
        return state_NLD + self.ff(self.norm3(state_NLD))


class SpatialTransformer(nn.Module):
    """Positions of a frame attend to one another, then to the condition tokens of the clip.

    Args:
        channels: Channels C.
        head_dim: Width of a head; divides `channels`.
        layers: Number of blocks.
        context_dim: Width E of a condition token.
        context_split: Condition tokens of the first branch; None for one branch.
        norm_groups: Groups of the group norm.
    """

    def __init__(
        self, channels: int, head_dim: int, layers: int, context_dim: int, context_split: int | None, norm_groups: int
    ) -> None:
        super().__init__()
        heads = channels // head_dim
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, head_dim, context_dim, context_split) for _ in range(layers)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, state_NChw: Tensor, context_BKE: Tensor) -> Tensor:
        """Return features of the same shape; the frames of a clip are consecutive."""
        state_NLD = self.proj_in(self.norm(state_NChw).flatten(2).transpose(1, 2))
        for block in self.blocks:
            state_NLD = block(state_NLD, context_BKE)
        return state_NChw + self.proj_out(state_NLD).transpose(1, 2).reshape(state_NChw.shape)


class TemporalTransformer(nn.Module):
    """Each position of the grid attends to itself in all frames of its clip, in both directions of time.

    No position of a frame is encoded: the order of frames comes from the temporal convolutions.

    Args:
        channels: Channels C.
        heads: Attention heads.
        head_dim: Width of a head; `heads * head_dim` is the width inside.
        layers: Number of blocks.
        norm_groups: Groups of the group norm, which is over all frames of a clip.
    """

    def __init__(self, channels: int, heads: int, head_dim: int, layers: int, norm_groups: int) -> None:
        super().__init__()
        width = heads * head_dim
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.proj_in = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, head_dim) for _ in range(layers))
        self.proj_out = zero_init(nn.Linear(width, channels))

    def forward(self, state_NChw: Tensor, num_frames: int) -> Tensor:
        """Return features of the same shape; the `num_frames` frames of a clip are consecutive."""
        channels, height, width = state_NChw.shape[1:]
        normed_BCFhw = self.norm(state_NChw.unflatten(0, (-1, num_frames)).transpose(1, 2))
        state_NFD = self.proj_in(normed_BCFhw.permute(0, 3, 4, 2, 1).reshape(-1, num_frames, channels))
        for block in self.blocks:
            state_NFD = block(state_NFD)
        out_BhwFC = self.proj_out(state_NFD).reshape(-1, height, width, num_frames, channels)
        return state_NChw + out_BhwFC.permute(0, 3, 4, 1, 2).reshape(state_NChw.shape)
