"""The two-layer projector between the tokenizer's features and the LLM (Divot appendix A.2, arXiv:2412.04432)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

RELEASED_NAMES = ("0", "1", "2")
"""Names of the layers in the released output projector (`output_resampler.proj.{0,2}`)."""


def mlp_projector(
    in_dim: int, hidden_dim: int, out_dim: int, names: Sequence[str] = ("hidden", "activation", "out")
) -> nn.Sequential:
    """Build two fully-connected layers with a GELU in between, from float (..., in_dim) to (..., out_dim).

    In the paper the input projector has the sizes 256 -> 4096 -> 4096 and the output head 4096 -> 8208 -> 8208.

    Args:
        in_dim: Channels of the input.
        hidden_dim: Channels between the layers.
        out_dim: Channels of the output.
        names: Names of the three layers, for the keys of the state.
    """
    layers = (nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
