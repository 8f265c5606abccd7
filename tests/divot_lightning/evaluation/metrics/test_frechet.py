"""The Frechet distance equals its textbook formula and streams."""

import numpy as np
import pytest
import torch

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.frechet import FrechetDistance, frechet_distance, matrix_square_root


def moments(seed: int, size: int, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    data = generator.normal(size=(samples, size)) @ generator.normal(size=(size, size)) + generator.normal(size=size)
    return data.mean(axis=0), np.cov(data, rowvar=False)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_distance_equals_the_formula_over_eigenvalues_of_the_plain_product(size):
    (mean1, cov1), (mean2, cov2) = moments(1, size), moments(2, size)
    cov1, cov2 = np.atleast_2d(cov1), np.atleast_2d(cov2)
    root_trace = np.sqrt(np.linalg.eigvals(cov1 @ cov2).astype(complex)).real.sum()
    expected = np.square(mean1 - mean2).sum() + np.trace(cov1 + cov2) - 2 * root_trace
    actual = frechet_distance(*(torch.from_numpy(part) for part in (mean1, cov1, mean2, cov2)))
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.item(), expected, rtol=1e-9)


def test_matrix_square_root_times_itself_is_the_matrix():
    covariance = torch.from_numpy(moments(3, 6)[1])
    root = matrix_square_root(covariance)
    torch.testing.assert_close(root @ root, covariance)
    torch.testing.assert_close(root, root.T)


def test_distance_of_a_distribution_to_itself_is_zero_and_it_is_symmetric():
    (mean1, cov1), (mean2, cov2) = (tuple(map(torch.from_numpy, moments(seed, 5))) for seed in (4, 5))
    assert frechet_distance(mean1, cov1, mean1, cov1) < 1e-9
    torch.testing.assert_close(frechet_distance(mean1, cov1, mean2, cov2), frechet_distance(mean2, cov2, mean1, cov1))


def test_singular_covariances_need_no_remedy():
    flat = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    assert frechet_distance(torch.zeros(3), flat, torch.zeros(3), torch.zeros(3, 3)).item() == pytest.approx(1.0)


def test_streamed_distance_equals_the_one_on_all_features_at_once():
    real, generated = torch.randn(90, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0]), torch.randn(70, 4) + 0.5
    metric = FrechetDistance(lambda clips: clips, num_features=4)
    for part in real.split(32):
        metric.update(part, real=True)
    for part in generated.split(17):
        metric.update(part, real=False)
    scale = real.double().std(dim=0)
    expected = frechet_distance(
        (real.double() / scale).mean(0),
        (real.double() / scale).T.cov(),
        (generated.double() / scale).mean(0),
        (generated.double() / scale).T.cov(),
    )
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-8, atol=1e-8)


def test_units_of_features_do_not_matter():
    real, generated = torch.randn(50, 3), torch.randn(50, 3) * 1.5
    distances = []
    for unit in (1.0, 1000.0):
        metric = FrechetDistance(lambda clips, unit=unit: clips * torch.tensor([unit, 1.0, 1.0]), num_features=3)
        metric.update(real, real=True)
        metric.update(generated, real=False)
        distances.append(metric.compute())
    torch.testing.assert_close(distances[0], distances[1], rtol=1e-4, atol=1e-4)


def test_too_few_clips_are_refused_with_their_number():
    metric = FrechetDistance(lambda clips: clips, num_features=2)
    metric.update(torch.randn(5, 2), real=True)
    metric.update(torch.randn(1, 2), real=False)
    with pytest.raises(UserError, match="2 generated clips, it was given 1"):
        metric.compute()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_told(value):
    metric = FrechetDistance(None, 2)
    metric.update(torch.rand(4, 2), real=True)
    metric.update(torch.tensor([[0.0, 1.0], [value, 1.0]]), real=False)
    with pytest.raises(UserError, match="features of the generated clips are not finite"):
        metric.compute()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_keep_their_digits_where_features_are_large(offset):
    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(50, 3, dtype=torch.float64, generator=generator) + offset for _ in range(2))
    metric = FrechetDistance(None, 3, scaled=False)
    for part in range(5):
        metric.update(real[part::5], real=True)
        metric.update(generated[part::5], real=False)
    expected = frechet_distance(real.mean(0), real.T.cov(), generated.mean(0), generated.T.cov())
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-9, atol=0)
