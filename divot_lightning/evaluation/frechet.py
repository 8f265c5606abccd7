"""The Frechet distance between two sets of clips in a given feature space.

Shape letters: B batch, F frames, N samples, K features.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric

from divot_lightning.errors import UserError

FeatureFunction = Callable[[Tensor], Tensor]


def matrix_square_root(covariance_KK: Tensor) -> Tensor:
    """Returns the symmetric square root of a covariance, (K, K) float64; negative eigenvalues count as zero."""
    values_K, vectors_KK = torch.linalg.eigh(covariance_KK.to(torch.float64))
    return (vectors_KK * values_K.clamp_min(0.0).sqrt()) @ vectors_KK.T


def frechet_distance(mean1_K: Tensor, cov1_KK: Tensor, mean2_K: Tensor, cov2_KK: Tensor) -> Tensor:
    """Returns the squared Frechet distance of two normal distributions, Dowson & Landau 1982.

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


class FrechetDistance(Metric):
    """Frechet distance between real and generated clips, from streamed sums.

    Each feature is divided by its standard deviation over the real clips, so that pixels, shares and colours weigh
    alike; the real clips must therefore be the same for all systems that are compared. The estimate is biased upwards
    for few clips: compare equal counts, and state the distance between two sets of real clips as the floor.

    Args:
        features: Maps clips (B, ...) to features (B, K). It must not be learned by the systems that are compared.
        num_features: K.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, features: FeatureFunction, num_features: int) -> None:
        super().__init__()
        self.features = features
        for kind in ("real", "generated"):
            zeros = torch.zeros(num_features, dtype=torch.float64)
            outer = torch.zeros(num_features, num_features, dtype=torch.float64)
            self.add_state(f"{kind}_sum", zeros, dist_reduce_fx="sum")
            self.add_state(f"{kind}_outer", outer, dist_reduce_fx="sum")
            self.add_state(f"{kind}_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, clips: Tensor, *, real: bool) -> None:
        """Adds clips (B, ...) to the real or to the generated set."""
        features_BK = self.features(clips).to(torch.float64)
        kind = "real" if real else "generated"
        setattr(self, f"{kind}_sum", getattr(self, f"{kind}_sum") + features_BK.sum(dim=0))
        setattr(self, f"{kind}_outer", getattr(self, f"{kind}_outer") + features_BK.T @ features_BK)
        setattr(self, f"{kind}_count", getattr(self, f"{kind}_count") + len(features_BK))

    def _moments(self, kind: str) -> tuple[Tensor, Tensor]:
        count = cast(Tensor, getattr(self, f"{kind}_count"))
        if count < 2:
            raise UserError(f"the Frechet distance needs at least 2 {kind} clips, it was given {int(count)}")
        mean_K = getattr(self, f"{kind}_sum") / count
        cov_KK = (getattr(self, f"{kind}_outer") - count * torch.outer(mean_K, mean_K)) / (count - 1)
        return mean_K, cov_KK

    def compute(self) -> Tensor:
        """Returns the distance, scalar float64."""
        (real_mean_K, real_cov_KK), (mean_K, cov_KK) = self._moments("real"), self._moments("generated")
        # A feature that is constant over the real clips keeps its own unit.
        scale_K = real_cov_KK.diagonal().clamp_min(0.0).sqrt()
        scale_K = torch.where(scale_K > 1e-9, scale_K, torch.ones_like(scale_K))
        scale_KK = torch.outer(scale_K, scale_K)
        return frechet_distance(real_mean_K / scale_K, real_cov_KK / scale_KK, mean_K / scale_K, cov_KK / scale_KK)
