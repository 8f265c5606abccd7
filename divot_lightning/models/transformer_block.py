"""The pre-norm transformer block that the temporal and the spatio-temporal transformer are made of.

Letters: B batch, L sequence length, C width, H heads, E width of one head.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import UserError

MLP_RATIO = 4
"""Width of the MLP's hidden layer divided by the block's width, everywhere in the tokenizer."""

BLOCK_NORM_EPS = 1e-6
"""LayerNorm epsilon inside the blocks, as in the released code."""


def quick_gelu(x: Tensor) -> Tensor:
    """Apply CLIP's approximation of the GELU, ``x * sigmoid(1.702 x)``, elementwise.

    >>> import torch
    >>> quick_gelu(torch.tensor([0.0, 100.0])).tolist()
    [0.0, 100.0]
    """
    return functional.silu(1.702 * x) / 1.702


def check_heads(owner: str, width: int, heads: int) -> None:
    """Raise UserError unless ``width`` is a positive multiple of ``heads``."""
    if heads < 1 or width < 1 or width % heads:
        raise UserError(
            f"{owner}: width {width} does not divide into {heads} heads; choose a width that is a multiple of heads"
        )


class SelfAttention(nn.Module):
    """Full (non-causal) multi-head self-attention over one sequence.

    Args:
        width: Channels of the sequence.
        heads: Number of heads; divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Let each position of ``x_BLC`` attend to all positions; the shape stays the same."""
        qkv = self.qkv(x_BLC).unflatten(-1, (3, self.heads, -1))
        q_BHLE, k_BHLE, v_BHLE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        read_BHLE = functional.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE)
        return self.out(read_BHLE.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a two-layer MLP, each after a LayerNorm and with a residual connection.

    Args:
        width: Channels of the sequence.
        heads: Number of attention heads; divides ``width``.
        activation: Elementwise function between the MLP's layers.
    """

    def __init__(self, width: int, heads: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.mlp_in = nn.Linear(width, MLP_RATIO * width)
        self.mlp_out = nn.Linear(MLP_RATIO * width, width)
        self.activation = activation

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Map a sequence to a sequence of the same shape."""
        x_BLC = x_BLC + self.attention(self.attention_norm(x_BLC))
        return x_BLC + self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x_BLC))))
