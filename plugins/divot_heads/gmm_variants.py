"""Variants of the mixture of the paper: a component for a whole clip, low-rank covariances, and a relaxed loss.

A component k of a token has the covariance diag(v_k) + W_k W_k^T, where W_k has L columns; the paper has L = 0. Ours.
The relaxed loss gives each component a share of each target, an idea of "relaxed winner takes all"
(arXiv:1612.00197, section 3.2), there for predictions without a density.

Shape letters: B batch, Q tokens of one clip, X any dimensions, N tokens, C feature width, K mixture components, L rank.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, Normal
from torch.utils.checkpoint import checkpoint

from divot_lightning.parts.heads import masked_mean

PART_ELEMENTS = 2**24
"""Means and factors of the components of one part of a batch: 64 MiB in float32, and some times as much in all."""


@dataclass(frozen=True)
class Mixture:
    """The mixture of each token.

    Attributes:
        means_BQKC: Means, float32.
        variances_BQKC: Variances of the diagonal part, above 0.
        logits_BQK: Weights, before the softmax.
        factors_BQKCL: Low-rank part of the covariances; L may be 0.
        shared: Whether all tokens of a clip have the same component; its logits are then the mean of the tokens'.
    """

    means_BQKC: Tensor
    variances_BQKC: Tensor
    logits_BQK: Tensor
    factors_BQKCL: Tensor
    shared: bool


def component_log_prob(mixture: Mixture, target_BQC: Tensor) -> Tensor:
    """Return the log-density of each component at the target, (B, Q, K), in nats.

    Large batches are computed in parts of their tokens, and again in the backward pass, so that only one part's
    intermediate results are in memory.
    """
    factors_BQKCL = mixture.factors_BQKCL
    num_elements = mixture.means_BQKC.numel() * (1 + factors_BQKCL.shape[-1])
    tensors = (mixture.means_BQKC, mixture.variances_BQKC, factors_BQKCL, target_BQC)
    if num_elements <= PART_ELEMENTS:
        return _log_prob(*tensors)
    num_parts = math.ceil(num_elements / PART_ELEMENTS)
    parts = zip(*(each.flatten(0, 1).tensor_split(num_parts) for each in tensors), strict=True)
    log_prob_NK = torch.cat([checkpoint(_log_prob, *part, use_reentrant=False) for part in parts])
    return log_prob_NK.view(mixture.logits_BQK.shape)


def _log_prob(means_XKC: Tensor, variances_XKC: Tensor, factors_XKCL: Tensor, target_XC: Tensor) -> Tensor:
    gaussian: Distribution
    if factors_XKCL.shape[-1]:
        gaussian = LowRankMultivariateNormal(means_XKC, factors_XKCL, variances_XKC, validate_args=False)
    else:
        gaussian = Independent(Normal(means_XKC, variances_XKC.sqrt(), validate_args=False), 1)
    log_prob_XK: Tensor = gaussian.log_prob(target_XC.unsqueeze(-2))
    return log_prob_XK


def clip_logits(logits_BQK: Tensor, mask_BQ: Tensor) -> Tensor:
    """Return the mean of the logits over the tokens that count, (B, K)."""
    weights_BQ1 = mask_BQ.unsqueeze(-1).to(logits_BQK.dtype)
    return (weights_BQ1 * logits_BQK).sum(dim=1) / weights_BQ1.sum(dim=1).clamp(min=1.0)


def relaxed(joint_XK: Tensor, relaxation: float) -> Tensor:
    """Return the log-likelihood of a mixture, with a fraction of it replaced by the mean over the components.

    This is (1 - e) log sum_k exp(j_k) + e mean_k j_k, for j_k = log w_k N_k(x) and the fraction e. Its gradient is
    that of a mixture in which component k has the responsibility (1 - e) r_k + e / K. In many dimensions r is soon
    nearly 1 for one component and 0 for the others. With e = 0 the others then do not move, so they are not chosen
    later either; with e > 0 they still move towards the targets, and can come back.

    Args:
        joint_XK: log w_k N_k(x).
        relaxation: e, in [0, 1).

    Returns:
        (X,), at most the log-likelihood, which it is for e = 0.
    """
    likelihood_X = joint_XK.logsumexp(dim=-1)
    return torch.lerp(likelihood_X, joint_XK.mean(dim=-1), relaxation) if relaxation else likelihood_X


def mixture_nll(mixture: Mixture, target_BQC: Tensor, mask_BQ: Tensor | None, relaxation: float = 0.0) -> Tensor:
    """Return the negative log-likelihood per token and feature dimension.

    A token alone: -log sum_k w_k N_k(x). With a shared component: -log sum_k w_k prod_q N_k(x_q) for a clip, summed
    over the clips and divided by the number of tokens that count.

    Args:
        mixture: The mixture.
        target_BQC: Targets, finite at masked tokens too.
        mask_BQ: True or 1 where a token counts; None counts all.
        relaxation: In [0, 1); each log sum_k is `relaxed`.

    Returns:
        A scalar, float32, in nats per dimension; 0 if no token counts.
    """
    log_prob_BQK = component_log_prob(mixture, target_BQC)
    if not mixture.shared:
        nll_BQ = -relaxed(mixture.logits_BQK.log_softmax(dim=-1) + log_prob_BQK, relaxation)
        return masked_mean(nll_BQ / target_BQC.shape[-1], mask_BQ)
    mask_BQ = torch.ones_like(log_prob_BQK[..., 0]) if mask_BQ is None else mask_BQ.to(log_prob_BQK.dtype)
    clip_BK = (mask_BQ.unsqueeze(-1) * log_prob_BQK).sum(dim=1)
    nll_B = -relaxed(clip_logits(mixture.logits_BQK, mask_BQ).log_softmax(dim=-1) + clip_BK, relaxation)
    return nll_B.sum() / (mask_BQ.sum().clamp(min=1.0) * target_BQC.shape[-1])


def draw_components(logits_BQK: Tensor, temperature: float, generator: Generator | None) -> Tensor:
    """Return the index of a component for each token, (B, Q) integers: the most probable one at temperature 0."""
    if temperature == 0:
        return logits_BQK.argmax(dim=-1)
    weights_NK = (logits_BQK / temperature).softmax(dim=-1).flatten(0, -2)
    return torch.multinomial(weights_NK, 1, generator=generator).view(logits_BQK.shape[:-1])


def sample_mixture(
    mixture: Mixture, *, variance_scale: float = 1.0, temperature: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Sample a component of each token, or of each clip if shared, then a value of its Gaussian.

    Args:
        mixture: The mixture.
        variance_scale: Multiplies the covariances.
        temperature: Divides the logits and multiplies the noise; 0 gives the mean of the most probable component.
        generator: Random generator on the device of the mixture.

    Returns:
        features_BQC, float32.
    """
    logits_BQK = mixture.logits_BQK
    if mixture.shared:
        logits_BQK = logits_BQK.mean(dim=1, keepdim=True)
    chosen_BQ = draw_components(logits_BQK, temperature, generator)
    index_BQ1 = chosen_BQ.expand(mixture.means_BQKC.shape[:2]).unsqueeze(-1)
    mean_BQC, variance_BQC, factors_BQCL = (
        torch.take_along_dim(values, index_BQ1.view(*index_BQ1.shape, *[1] * (values.ndim - 3)), dim=2).squeeze(2)
        for values in (mixture.means_BQKC, mixture.variances_BQKC, mixture.factors_BQKCL)
    )
    device = mean_BQC.device
    noise_BQC = torch.randn(mean_BQC.shape, generator=generator, device=device)
    common_BQL1 = torch.randn((*factors_BQCL.shape[:2], factors_BQCL.shape[-1], 1), generator=generator, device=device)
    deviation_BQC = variance_BQC.sqrt() * noise_BQC + (factors_BQCL @ common_BQL1).squeeze(-1)
    return mean_BQC + temperature * variance_scale**0.5 * deviation_BQC
