"""The small MLP that denoises one token at a time, as in MAR's diffusion loss (arXiv:2406.11838, section 3.2).

Shape letters: N rows (tokens times noise draws), C feature width, D condition width, W width of the denoiser.
"""

from torch import Tensor, nn
from torch.nn.functional import silu

from divot_lightning.models.positions import sinusoidal_embedding


class MLPDenoiser(nn.Module):
    """Residual MLP blocks whose normalisation is modulated by the noise level and the condition.

    A new denoiser is the zero function: the last layer and every block's gate are initialised to zero.
    """

    def __init__(
        self,
        feature_dim: int,
        condition_dim: int,
        width: int,
        depth: int,
        two_times: bool = False,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        """Build the layers.

        Args:
            feature_dim: C, width of the features to denoise.
            condition_dim: D, width of the condition of each row.
            width: W, width of the residual stream, even.
            depth: Number of residual blocks.
            two_times: Whether the prediction depends on a second time.
            linear: Class of all linear layers.
        """
        super().__init__()
        self.features_in = linear(feature_dim, width)
        self.condition_in = nn.Sequential(nn.LayerNorm(condition_dim), linear(condition_dim, width))
        self.time_in = nn.Sequential(linear(width, width), nn.SiLU(), linear(width, width))
        self.blocks = nn.ModuleList(ModulatedMLP(width, linear) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = zero_init(linear(width, 2 * width))
        self.features_out = zero_init(linear(width, feature_dim))
        self.second_time_in = (
            nn.Sequential(linear(width, width), nn.SiLU(), linear(width, width)) if two_times else None
        )

    def forward(
        self, noisy_NC: Tensor, timestep_N: Tensor, condition_ND: Tensor, second_time_N: Tensor | None = None
    ) -> Tensor:
        """Predict the noise or the velocity, depending on how it is trained.

        Args:
            noisy_NC: Noisy features, float32.
            timestep_N: Diffusion step, 0 to 1000, int or float.
            condition_ND: Condition of each row, float32.
            second_time_N: Second time, needed if there are `two_times`.

        Returns:
            prediction_NC, float32.
        """
        width = self.features_in.out_features
        time_NW = self.time_in(sinusoidal_embedding(timestep_N, width))
        if self.second_time_in is not None:
            assert second_time_N is not None
            time_NW = time_NW + self.second_time_in(sinusoidal_embedding(second_time_N, width))
        condition_NW = silu(time_NW + self.condition_in(condition_ND))
        stream_NW = self.features_in(noisy_NC)
        for block in self.blocks:
            stream_NW = block(stream_NW, condition_NW)
        shift_NW, scale_NW = self.modulation_out(condition_NW).chunk(2, dim=-1)
        return self.features_out(self.norm_out(stream_NW) * (1 + scale_NW) + shift_NW)


class ModulatedMLP(nn.Module):
    """One residual block: normalise, shift and scale by the condition, MLP, gate by the condition (AdaLN-zero)."""

    def __init__(self, width: int, linear: type[nn.Linear] = nn.Linear) -> None:
        """Build the block.

        Args:
            width: W, width of the stream, of the condition and of the hidden layer.
            linear: Class of the linear layers.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero_init(linear(width, 3 * width))
        self.mlp = nn.Sequential(linear(width, width), nn.SiLU(), linear(width, width))

    def forward(self, stream_NW: Tensor, condition_NW: Tensor) -> Tensor:
        """Return the updated stream; both inputs and the output are (N, W), float32."""
        shift_NW, scale_NW, gate_NW = self.modulation(condition_NW).chunk(3, dim=-1)
        return stream_NW + gate_NW * self.mlp(self.norm(stream_NW) * (1 + scale_NW) + shift_NW)


def zero_init(layer: nn.Linear) -> nn.Linear:
    """Return a linear layer after its weights were set to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
