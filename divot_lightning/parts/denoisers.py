"""The base class of denoisers: the network of the de-tokenizer's diffusion.

Shape letters: B batch, f latent frames, c latent channels, h w latent grid, K condition tokens, E condition width.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from divot_lightning.parts.part import Part


class Denoiser(Part, nn.Module, ABC):
    """Predicts what the objective asks for, from noisy latents, their time and the tokens of the clip.

    The first arguments of a subclass are the sizes in `supplied_args`, which the de-tokenizer derives from the latents
    and the tokenizer. Its own settings follow, which a recipe supplies; they must be values that JSON can hold. A
    network that attends to conditions of another width projects them itself, by a trained layer.

    Attributes:
        outer_layers: Names of submodules whose inputs or outputs are latents or scales, which Muon must not train.
        token_grid: Steps in time, rows and columns of a transformer's hidden states, whose sequences are ordered by
            them; None if the hidden states are maps or have another order. For REPA.
        source: Local folder that frozen weights come from; None if all weights are trained or stored.
    """

    supplied_args: ClassVar[tuple[str, ...]] = ("channels", "frames", "grid", "condition_tokens", "condition_dim")
    outer_layers: tuple[str, ...] = ()
    token_grid: tuple[int, int, int] | None = None
    source: str | None = None

    def __init__(
        self, channels: int, frames: int, grid: tuple[int, int], condition_tokens: int, condition_dim: int
    ) -> None:
        """Store the sizes.

        Args:
            channels: Latent channels c.
            frames: Latent frames f.
            grid: Latent rows h and columns w.
            condition_tokens: Condition tokens K.
            condition_dim: Condition width E.
        """
        super().__init__()
        self.channels, self.frames, self.grid = channels, frames, grid
        self.condition_tokens, self.condition_dim = condition_tokens, condition_dim

    @abstractmethod
    def forward(self, latents_BFchw: Tensor, time_B: Tensor, condition_BKE: Tensor) -> Tensor:
        """Return the prediction, of the latents' shape.

        Args:
            latents_BFchw: Noisy latents (B, f, c, h, w), float.
            time_B: Diffusion time in [0, 1000], larger is noisier; int or float.
            condition_BKE: Condition tokens, float.
        """
