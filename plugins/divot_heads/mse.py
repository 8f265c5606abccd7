"""Regression of the features: the simplest head, for comparison with heads that sample.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width.
"""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from divot_lightning.models.video_llm.projectors import RELEASED_NAMES, mlp_projector
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean


class MSEHead(GenerationHead):
    """Regression of each feature; a prediction is the average of all clips that fit the text.

    Objective (a) of arXiv:2412.04432, section 3.2. Its loss is the squared error, averaged over C and the tokens.
    """

    deterministic: ClassVar[bool] = True

    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        """Build the projector.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
        """
        super().__init__(hidden_dim, feature_dim)
        self.proj = mlp_projector(hidden_dim, feature_dim, feature_dim, RELEASED_NAMES)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the mean squared error; see `GenerationHead.loss`."""
        predicted_BQC = self.proj(clear_masked(hidden_BQD, mask_BQ))
        error_BQC = predicted_BQC - clear_masked(target_BQC, mask_BQ)
        return masked_mean(error_BQC.square().mean(dim=-1), mask_BQ)

    @torch.no_grad()
    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Return the prediction; nothing is random, so `temperature` and `generator` have no effect."""
        return self.proj(hidden_BQD)
