"""The two-layer projector from the LLM's hidden states to the parameters that a head predicts.

Shape letters: B batch, Q tokens of one clip, D LLM width, P output width.
"""

from torch import nn


def two_layer_projector(hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Build Linear, GELU, Linear with the inner width equal to the output width.

    This is the released output projector (`output_resampler.proj.{0,2}`, 4096 -> 8208 -> 8208) with the same
    keys of its state. arXiv:2412.04432, section A.2: "two fully-connected layers".

    Args:
        hidden_dim: D, width of the input.
        output_dim: P, width between the layers and of the output.

    Returns:
        A module from (B, Q, D) to (B, Q, P), float.
    """
    return nn.Sequential(nn.Linear(hidden_dim, output_dim), nn.GELU(), nn.Linear(output_dim, output_dim))
