"""A mixture of diagonal Gaussians per token: the head of the paper.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width, K mixture components,
P = 2*K*C + K parameters per token.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor

from divot_heads.gmm_likelihood import gmm_nll, gmm_sample, split_gmm_params
from divot_heads.gmm_variants import Mixture, mixture_nll, sample_mixture
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.video_llm.projectors import RELEASED_NAMES, mlp_projector
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32


class GMMHead(GenerationHead):
    """A mixture of K diagonal Gaussians per token; the head of the paper.

    Objective (c) of arXiv:2412.04432, sections 3.2 and A.2, with the released layout (means | variances | logits),
    softplus variances with a floor of 1e-5, and the negative log-likelihood divided by C. Three settings, which are
    ours and off by default, are described in `divot_heads.gmm_variants`.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ("variance_scale",)

    def __init__(
        self,
        hidden_dim: int,
        feature_dim: int,
        num_components: int = 16,
        variance_scale: float = 0.1,
        covariance_rank: int = 0,
        shared_component: bool = False,
        relaxation: float = 0.0,
        projector_dim: int | None = None,
    ) -> None:
        """Build the projector from D to 2*K*C + K.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features.
            num_components: K, Gaussians per token, at least 1; 16 in the paper.
            variance_scale: Multiplies the variances when sampling, at least 0; 0.1 in the released code.
            covariance_rank: L, rank of what is added to the diagonal covariance of each component, at least 0; its
                K*C*L numbers per token come from a projector of their own.
            shared_component: Whether all tokens of a clip have the same component, so that they fit each other.
            relaxation: Fraction of each target that all components learn in equal parts while training, at least 0
                and below 1; 0 in the paper. With 0, only the component that explains a target best learns from it, and
                a hidden state ends with one or two of them. With 0.1 most of them are used.
            projector_dim: Channels between the two layers of the projector, at least 1; None for as many as it has
                outputs, as in the paper, with a cost that grows with the square of K.
        """
        super().__init__(hidden_dim, feature_dim)
        require_at_least(1, num_components=num_components, projector_dim=projector_dim)
        require_at_least(0, variance_scale=variance_scale, covariance_rank=covariance_rank, relaxation=relaxation)
        if not relaxation < 1:
            raise UserError(f"relaxation is {relaxation}; it must be at least 0 and below 1")
        self.num_components = num_components
        self.variance_scale = variance_scale
        self.covariance_rank = covariance_rank
        self.shared_component = shared_component
        self.relaxation = relaxation
        num_outputs = 2 * num_components * feature_dim + num_components
        self.proj = mlp_projector(hidden_dim, projector_dim or num_outputs, num_outputs, RELEASED_NAMES)
        num_factors = num_components * feature_dim * covariance_rank
        self.factors = mlp_projector(hidden_dim, hidden_dim, num_factors) if covariance_rank else None

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the negative log-likelihood per feature dimension, in nats; see `GenerationHead.loss`.

        While training, `relaxation` adds to it; see `divot_heads.gmm_variants.relaxed`.
        """
        relaxation = self.relaxation if self.training else 0.0
        hidden_BQD, target_BQC = clear_masked(hidden_BQD, mask_BQ), clear_masked(target_BQC, mask_BQ)
        if self.factors is not None or self.shared_component:
            return mixture_nll(self._mixture(hidden_BQD), target_BQC, mask_BQ, relaxation)
        return gmm_nll(self.proj(hidden_BQD), target_BQC, self.num_components, mask_BQ, relaxation)

    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Sample a component, then a value of its Gaussian; `temperature` as in `gmm_sample`."""
        # By the name of the class: a subclass may have a `sample_each` that calls this method.
        return GMMHead.sample_each(self, hidden_BQD, [generator], temperature=temperature)[0]

    @torch.no_grad()
    @force_float32
    def sample_each(
        self, hidden_BQD: Tensor, generators: Sequence[Generator | None], *, temperature: float = 1.0
    ) -> Tensor:
        """Compute the mixtures once, and sample from them with each generator; see `GenerationHead.sample_each`."""
        spread = {"variance_scale": self.variance_scale, "temperature": temperature}
        if self.factors is not None or self.shared_component:
            mixture = self._mixture(hidden_BQD)
            sampled = [sample_mixture(mixture, **spread, generator=one) for one in generators]
        else:
            params_BQP = self.proj(hidden_BQD)
            sampled = [gmm_sample(params_BQP, self.num_components, **spread, generator=one) for one in generators]
        return torch.stack(sampled)

    def _mixture(self, hidden_BQD: Tensor) -> Mixture:
        means_BQKC, variances_BQKC, logits_BQK = split_gmm_params(self.proj(hidden_BQD), self.num_components)
        if self.factors is None:
            factors_BQKCL = means_BQKC.new_zeros(*means_BQKC.shape, 0)
        else:
            factors_BQKCL = self.factors(hidden_BQD).view(*means_BQKC.shape, self.covariance_rank)
        return Mixture(means_BQKC, variances_BQKC, logits_BQK, factors_BQKCL, self.shared_component)
