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


def merge_moments(counts_P: Tensor, means_PK: Tensor, scatters_PKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the moments of several parts of a sample, Chan, Golub & LeVeque 1979.

    Sums of squares around each part's own mean lose no digits if features are large compared with their spread.

    Args:
        counts_P: Samples of each part, float64; parts may be empty.
        means_PK: Mean of each part.
        scatters_PKK: Sum over each part of the outer products of the deviations from its mean.

    Returns:
        Count, mean (K,) and scatter (K, K) of all.

    >>> ones = torch.ones(2, dtype=torch.float64)
    >>> [value.item() for value in merge_moments(ones, torch.tensor([[1.0], [3.0]]).double(), torch.zeros(2, 1, 1))]
    [2.0, 2.0, 2.0]
    """
    count = counts_P.sum()
    mean_K = (counts_P[:, None] * means_PK).sum(dim=0) / count.clamp_min(1.0)
    offsets_PK = means_PK - mean_K
    scatter_KK = scatters_PKK.sum(dim=0) + (counts_P[:, None] * offsets_PK).T @ offsets_PK
    return count, mean_K, scatter_KK


class FrechetDistance(Metric):
    """Frechet distance between real and generated clips, from streamed moments in float64.

    With the features of a network this is the Frechet video distance (Unterthiner et al. 2018, arXiv:1812.01717). The
    estimate is biased upwards for few clips: compare equal counts, and state the distance between two sets of real
    clips as the floor.

    Args:
        features: Maps clips (B, ...) to features (B, K). It must not be learned by the systems that are compared. None
            takes features instead of clips.
        num_features: K.
        scaled: Whether each feature is divided by its standard deviation over the real clips, so that pixels,
            fractions and colours weigh alike; the real clips must then be the same for all systems that are compared.
            The published distance over a network's features is not scaled.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = True  # states of parts are merged, not summed

    def __init__(self, features: FeatureFunction | None, num_features: int, *, scaled: bool = True) -> None:
        super().__init__()
        self.features = features
        self.scaled = scaled
        for kind in ("real", "generated"):
            zeros = {"count": (), "mean": (num_features,), "scatter": (num_features, num_features)}
            for name, shape in zeros.items():
                self.add_state(f"{kind}_{name}", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx=None)

    @torch.no_grad()
    def update(self, clips: Tensor, *, real: bool) -> None:
        """Add clips (B, ...), or their features (B, K), to the real or to the generated set."""
        kind = "real" if real else "generated"
        before = self._state(kind)
        features_BK = clips if self.features is None else self.features(clips)
        part_BK = features_BK.to(before[1].device, torch.float64)
        mean_K = part_BK.sum(dim=0) / max(1, len(part_BK))
        offsets_BK = part_BK - mean_K
        now = (torch.full_like(before[0], len(part_BK)), mean_K, offsets_BK.T @ offsets_BK)
        merged = merge_moments(*(torch.stack(pair) for pair in zip(before, now, strict=True)))
        for name, value in zip(("count", "mean", "scatter"), merged, strict=True):
            setattr(self, f"{kind}_{name}", value)

    def _state(self, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        count, mean, scatter = (cast(Tensor, getattr(self, f"{kind}_{name}")) for name in ("count", "mean", "scatter"))
        # After a synchronisation the states of all processes are stacked, (P, ...).
        return merge_moments(count, mean, scatter) if count.ndim else (count, mean, scatter)

    def _moments(self, kind: str) -> tuple[Tensor, Tensor]:
        count, mean_K, scatter_KK = self._state(kind)
        if count < 2:
            raise UserError(f"the Frechet distance needs at least 2 {kind} clips, it was given {int(count)}")
        if not (mean_K.isfinite().all() and scatter_KK.isfinite().all()):
            raise UserError(f"features of the {kind} clips are not finite: the Frechet distance is undefined")
        return mean_K, scatter_KK / (count - 1)

    def compute(self) -> Tensor:
        """Return the distance, scalar float64."""
        (real_mean_K, real_cov_KK), (mean_K, cov_KK) = self._moments("real"), self._moments("generated")
        if not self.scaled:
            return frechet_distance(real_mean_K, real_cov_KK, mean_K, cov_KK)
        # A feature that is constant over the real clips is not scaled.
        scale_K = real_cov_KK.diagonal().clamp_min(0.0).sqrt()
        scale_K = torch.where(scale_K > 1e-9, scale_K, torch.ones_like(scale_K))
        scale_KK = torch.outer(scale_K, scale_K)
        return frechet_distance(real_mean_K / scale_K, real_cov_KK / scale_KK, mean_K / scale_K, cov_KK / scale_KK)
