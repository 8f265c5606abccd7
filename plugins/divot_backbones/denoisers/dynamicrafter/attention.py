"""Attention with one context or with two gated branches of it.

Shape letters: N sequences, L their length, D width, B batch, K context tokens, E their width, H heads, d width of a
head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import UserError


class Attention(nn.Module):
    """Multi-head attention to the sequence itself, or to a context.

    Args:
        width: Width D of the sequence.
        heads: Number of heads H.
        head_dim: Width d of a head; `heads * head_dim` need not equal `width`.
        context_dim: Width E of the context; None for self-attention.
    """

    def __init__(self, width: int, heads: int, head_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_dim or width, inner, bias=False)
        self.to_v = nn.Linear(context_dim or width, inner, bias=False)
        # Named as in `diffusers`, so that LoRA finds these layers as it does there.
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, state_NLD: Tensor, context_BKE: Tensor | None = None) -> Tensor:
        """Return what each position reads, (N, L, D).

        Args:
            state_NLD: The sequences, float.
            context_BKE: None for self-attention. N is a multiple of B: the first N/B sequences, which are the frames of
                one clip, read the first context, so its keys and values are computed once per clip.
        """
        context = state_NLD if context_BKE is None else context_BKE
        query = self._split_heads(self.to_q(state_NLD.reshape(len(context), -1, state_NLD.shape[-1])))
        read = self._read(query, context)
        return self.to_out(read.transpose(1, 2).flatten(2)).view(state_NLD.shape)

    def _read(self, query_BHLd: Tensor, context_BKE: Tensor) -> Tensor:
        return self._attend(query_BHLd, self.to_k(context_BKE), self.to_v(context_BKE))

    def _attend(self, query_BHLd: Tensor, key_BKD: Tensor, value_BKD: Tensor) -> Tensor:
        keys, values = self._split_heads(key_BKD), self._split_heads(value_BKD)
        return functional.scaled_dot_product_attention(query_BHLd, keys, values)

    def _split_heads(self, sequence: Tensor) -> Tensor:
        return sequence.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TwoBranchAttention(Attention):
    """Attention to the first tokens of a context and, with other keys and values, to the tokens after them.

    DynamiCrafter reads 77 text tokens in the first branch and image tokens in the second, whose output is multiplied by
    a learned gate, `tanh(g) + 1`, and added. Divot keeps the split after 77 tokens though all its tokens are of one
    kind.

    Args:
        width: Width D of the sequence.
        heads: Number of heads H.
        head_dim: Width d of a head.
        context_dim: Width E of the context.
        split: Tokens of the first branch.
    """

    def __init__(self, width: int, heads: int, head_dim: int, context_dim: int, split: int) -> None:
        super().__init__(width, heads, head_dim, context_dim)
        self.split = split
        self.second = nn.ModuleDict(
            {name: nn.Linear(context_dim, heads * head_dim, bias=False) for name in ("to_k", "to_v")}
        )
        # One element and not a scalar, which DeepSpeed cannot shard.
        self.gate = nn.Parameter(torch.zeros(1))

    def _read(self, query_BHLd: Tensor, context_BKE: Tensor) -> Tensor:
        check_split(context_BKE.shape[1], self.split)
        first, second = context_BKE[:, : self.split], context_BKE[:, self.split :]
        key_BKD, value_BKD = self.second["to_k"](second), self.second["to_v"](second)
        return super()._read(query_BHLd, first) + (self.gate.tanh() + 1) * self._attend(query_BHLd, key_BKD, value_BKD)


def check_split(tokens: int, split: int | None) -> None:
    """Raise UserError unless the second branch, if there is one, has tokens to read."""
    if split is not None and tokens <= split:
        raise UserError(
            f"DynamiCrafter U-Net: the first attention branch reads {split} condition tokens, and of {tokens} none is "
            "left for the second\ngive more condition tokens, a smaller context_split, or null for one branch"
        )
