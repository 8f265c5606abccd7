"""The Perceiver resampler: a fixed number of learned queries reads a sequence of any length.

Letters: B batch, L input length, Q queries, S = L + Q, C channels, H heads, E width of one head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import require_at_least

FEED_FORWARD_FACTOR = 4
"""Width of the feed-forward nets divided by the channels, as released."""


class PerceiverAttention(nn.Module):
    """Attention of queries to the input and to one another: keys and values are computed from both, concatenated.

    Args:
        dim: Channels of input and queries.
        dim_head: Channels of one head; ``heads * dim_head`` need not equal ``dim``.
        heads: Number of heads.
    """

    def __init__(self, dim: int, *, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_norm = nn.LayerNorm(dim)
        self.query_norm = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_key_value = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x_BLC: Tensor, queries_BQC: Tensor) -> Tensor:
        """Return the attention output of each query, (B, Q, dim)."""
        queries_BQC = self.query_norm(queries_BQC)
        source_BSC = torch.cat([self.input_norm(x_BLC), queries_BQC], dim=1)
        q_BHQE = self.to_query(queries_BQC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_value = self.to_key_value(source_BSC).unflatten(-1, (2, self.heads, -1))
        k_BHSE, v_BHSE = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        read_BHQE = functional.scaled_dot_product_attention(q_BHQE, k_BHSE, v_BHSE)
        return self.out(read_BHQE.transpose(1, 2).flatten(2))


class PerceiverLayer(nn.Module):
    """Attention followed by a feed-forward net, both with a residual connection.

    Args:
        dim: Channels of input and queries.
        dim_head: Channels of one attention head.
        heads: Number of attention heads.
    """

    def __init__(self, dim: int, *, dim_head: int, heads: int) -> None:
        super().__init__()
        self.attention = PerceiverAttention(dim, dim_head=dim_head, heads=heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff_in = nn.Linear(dim, FEED_FORWARD_FACTOR * dim, bias=False)
        self.ff_out = nn.Linear(FEED_FORWARD_FACTOR * dim, dim, bias=False)

    def forward(self, x_BLC: Tensor, queries_BQC: Tensor) -> Tensor:
        """Return the updated queries, (B, Q, dim)."""
        queries_BQC = queries_BQC + self.attention(x_BLC, queries_BQC)
        return queries_BQC + self.ff_out(functional.gelu(self.ff_in(self.ff_norm(queries_BQC))))


class PerceiverResampler(nn.Module):
    """Compress a sequence of any length into ``num_queries`` vectors.

    Used twice (Divot appendix A.1, arXiv:2412.04432): in the tokenizer (features -> 64 tokens of 256 channels) and in
    front of the de-tokenizer's U-Net (64 tokens -> 125 condition vectors of 1024 channels). No position
    embeddings are added to the input, so the order of its vectors does not matter.

    Args:
        dim: Channels inside.
        depth: Number of layers.
        dim_head: Channels of one attention head.
        heads: Number of attention heads.
        num_queries: Length of the output.
        embedding_dim: Channels of the input.
        output_dim: Channels of the output.
    """

    def __init__(
        self,
        *,
        dim: int = 1024,
        depth: int = 6,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 64,
        embedding_dim: int = 1024,
        output_dim: int = 256,
    ) -> None:
        super().__init__()
        sizes = {
            "dim": dim,
            "depth": depth,
            "dim_head": dim_head,
            "heads": heads,
            "num_queries": num_queries,
            "embedding_dim": embedding_dim,
            "output_dim": output_dim,
        }
        require_at_least(1, "Perceiver resampler: ", **sizes)
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim) * dim**-0.5)
        self.input_projection = nn.Linear(embedding_dim, dim)
        self.layers = nn.ModuleList(PerceiverLayer(dim, dim_head=dim_head, heads=heads) for _ in range(depth))
        self.output_projection = nn.Linear(dim, output_dim)
        self.output_norm = nn.LayerNorm(output_dim)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Map float (B, L, embedding_dim), any L, to (B, num_queries, output_dim), LayerNorm outputs."""
        x_BLC = self.input_projection(x_BLC)
        queries_BQC = self.queries.expand(x_BLC.shape[0], -1, -1)
        for layer in self.layers:
            queries_BQC = layer(x_BLC, queries_BQC)
        return self.output_norm(self.output_projection(queries_BQC))
