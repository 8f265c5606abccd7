"""The small MLP that denoises one token at a time, as in MAR's diffusion loss (arXiv:2406.11838, section 3.2).

Shape letters: N rows (tokens times noise draws), C feature width, D condition width, W width of the denoiser.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class MLPDenoiser(nn.Module):
    """Residual MLP blocks whose normalisation is modulated by the noise level and the condition.

    Starts as the zero function: the last layer and every block's gate are initialised to zero.
    """

    def __init__(self, feature_dim: int, condition_dim: int, width: int, depth: int) -> None:
        """Build the layers.

        Args:
            feature_dim: C, width of what is denoised.
            condition_dim: D, width of the condition of each row.
            width: W, width of the residual stream, even.
            depth: Number of residual blocks.
        """
        super().__init__()
        self.features_in = nn.Linear(feature_dim, width)
        self.condition_in = nn.Sequential(nn.LayerNorm(condition_dim), nn.Linear(condition_dim, width))
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(ModulatedMLP(width) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = _zeros(nn.Linear(width, 2 * width))
        self.features_out = _zeros(nn.Linear(width, feature_dim))

    def forward(self, noisy_NC: Tensor, timestep_N: Tensor, condition_ND: Tensor) -> Tensor:
        """Predict noise or velocity, whichever it is trained for.

        Args:
            noisy_NC: Noisy features, float32.
            timestep_N: Noise level, 0 to 1000, int or float.
            condition_ND: What each row is conditioned on, float32.

        Returns:
            prediction_NC, float32.
        """
        width = self.features_in.out_features
        time_NW = self.time_in(sinusoidal_embedding(timestep_N, width))
        condition_NW = silu(time_NW + self.condition_in(condition_ND))
        stream_NW = self.features_in(noisy_NC)
        for block in self.blocks:
            stream_NW = block(stream_NW, condition_NW)
        shift_NW, scale_NW = self.modulation_out(condition_NW).chunk(2, dim=-1)
        return self.features_out(self.norm_out(stream_NW) * (1 + scale_NW) + shift_NW)


class ModulatedMLP(nn.Module):
    """One residual block: normalise, shift and scale by the condition, MLP, gate by the condition (AdaLN-zero)."""

    def __init__(self, width: int) -> None:
        """Build the block.

        Args:
            width: W, width of the stream, of the condition and of the hidden layer.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeros(nn.Linear(width, 3 * width))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, stream_NW: Tensor, condition_NW: Tensor) -> Tensor:
        """Add what the block finds; both inputs and the output are (N, W), float32."""
        shift_NW, scale_NW, gate_NW = self.modulation(condition_NW).chunk(3, dim=-1)
        return stream_NW + gate_NW * self.mlp(self.norm(stream_NW) * (1 + scale_NW) + shift_NW)


def sinusoidal_embedding(position_N: Tensor, width: int, longest_period: float = 10_000.0) -> Tensor:
    """Embed numbers as sines and cosines of geometrically spaced frequencies (arXiv:1706.03762, section 3.5).

    Args:
        position_N: Numbers, such as diffusion steps, int or float.
        width: W, even.
        longest_period: In units of the numbers, over 2 pi.

    Returns:
        (N, W), float32 in [-1, 1].

    >>> sinusoidal_embedding(torch.tensor([0]), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    steps = torch.arange(width // 2, dtype=torch.float32, device=position_N.device)
    frequencies = torch.exp(-math.log(longest_period) * steps / (width // 2))
    angles = position_N.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
