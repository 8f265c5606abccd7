"""The Frechet distance between two sets of clips in a given feature space.

Shape letters: N samples, K features.
"""

import math

import torch
from torch import Tensor


def matrix_square_root(covariance_KK: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance, (K, K) float64; negative eigenvalues count as zero."""
    values_K, vectors_KK = torch.linalg.eigh(covariance_KK.to(torch.float64))
    return (vectors_KK * values_K.clamp_min(0.0).sqrt()) @ vectors_KK.T


def frechet_distance(mean1_K: Tensor, cov1_KK: Tensor, mean2_K: Tensor, cov2_KK: Tensor) -> Tensor:
    """Return the squared Frechet distance of two normal distributions, Dowson & Landau 1982.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), where the last trace is taken from the eigenvalues of the symmetric
    C1^(1/2) C2 C1^(1/2), so that neither complex numbers nor singular covariances need a remedy.

    Args:
        mean1_K: Mean of the first distribution, any float type.
        cov1_KK: Its covariance.
        mean2_K: Mean of the second.
        cov2_KK: Its covariance.

    Returns:
        Scalar float64, never below zero.

    >>> one = torch.eye(2)
    >>> frechet_distance(torch.zeros(2), one, torch.tensor([3.0, 4.0]), 4 * one).item()
    27.0
    """
    mean1_K, mean2_K = mean1_K.to(torch.float64), mean2_K.to(torch.float64)
    cov1_KK, cov2_KK = cov1_KK.to(torch.float64), cov2_KK.to(torch.float64)
    root_KK = matrix_square_root(cov1_KK)
    product_K = torch.linalg.eigvalsh(root_KK @ cov2_KK @ root_KK).clamp_min(0.0)
    distance = (mean1_K - mean2_K).square().sum() + cov1_KK.trace() + cov2_KK.trace() - 2 * product_K.sqrt().sum()
    return distance.clamp_min(0.0)


def feature_distance(real_NK: Tensor, generated_NK: Tensor, *, scaled: bool) -> Tensor:
    """Return the Frechet distance between two sets of features; with a network's, that of Unterthiner et al. 2018.

    The estimate is biased upwards for few clips (arXiv:1812.01717): compare equal counts, and state the distance
    between two sets of real clips as the floor. Covariances are divided by N - 1.

    Args:
        real_NK: Features of real clips, any float type. They must not be learned by the systems that are compared.
        generated_NK: Features of the others; their number may differ.
        scaled: Whether each feature is divided by its standard deviation over the real clips, so that pixels,
            fractions and colours weigh alike; the real clips must then be the same for all systems that are compared.
            The published distance over a network's features is not scaled.

    Returns:
        Scalar float64; NaN for fewer than two clips, and for features that are not finite: to leave out their clips
        would make a broken model look better than it is.
    """
    real_NK, generated_NK = real_NK.to(torch.float64), generated_NK.to(torch.float64)
    if min(len(real_NK), len(generated_NK)) < 2 or not (real_NK.isfinite().all() and generated_NK.isfinite().all()):
        return torch.tensor(math.nan, dtype=torch.float64)
    if scaled:
        scale_K = real_NK.std(dim=0)
        # A feature that is constant over the real clips is not scaled.
        scale_K = torch.where(scale_K > 1e-9, scale_K, torch.ones_like(scale_K))
        real_NK, generated_NK = real_NK / scale_K, generated_NK / scale_K
    moments = [(part_NK.mean(dim=0), part_NK.T.cov().view(part_NK.shape[1], -1)) for part_NK in (real_NK, generated_NK)]
    return frechet_distance(*moments[0], *moments[1])
