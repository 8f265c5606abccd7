"""The two-layer projector between the tokenizer's features and the LLM (Divot appendix A.2, arXiv:2412.04432)."""

from torch import Tensor, nn
from torch.nn import functional


class MLPProjector(nn.Module):
    """Two fully-connected layers with a GELU in between.

    In the paper the input projector has the sizes 256 -> 4096 -> 4096 and the output head 4096 -> 8208 -> 8208.

    Args:
        in_dim: Channels of the input.
        hidden_dim: Channels between the layers.
        out_dim: Channels of the output.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map float (..., in_dim) to (..., out_dim)."""
        return self.out(functional.gelu(self.hidden(x)))
