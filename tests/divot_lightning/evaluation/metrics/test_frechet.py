"""The Frechet distance equals its textbook formula."""

import numpy as np
import pytest
import torch

from divot_lightning.evaluation.metrics.frechet import feature_distance, frechet_distance, matrix_square_root


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


def test_distance_of_features_is_that_of_their_moments_each_in_its_deviation_over_real_clips():
    real, generated = torch.randn(90, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0]), torch.randn(70, 4) + 0.5
    scale = real.double().std(dim=0)
    for unit, scaled in ((scale, True), (torch.ones(4), False)):
        first, second = (part.double().numpy() / unit.numpy() for part in (real, generated))
        moments = [first.mean(0), np.cov(first.T), second.mean(0), np.cov(second.T)]
        expected = frechet_distance(*map(torch.from_numpy, moments))
        torch.testing.assert_close(feature_distance(real, generated, scaled=scaled), expected, rtol=1e-8, atol=1e-8)


def test_units_of_features_do_not_matter():
    real, generated = torch.randn(50, 3), torch.randn(50, 3) * 1.5
    units = (torch.tensor([unit, 1.0, 1.0]) for unit in (1.0, 1000.0))
    one, other = (feature_distance(real * unit, generated * unit, scaled=True) for unit in units)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_constant_feature_and_a_single_one_have_a_distance():
    real, generated = torch.ones(5, 1), torch.zeros(5, 1)
    assert feature_distance(real, generated, scaled=True).item() == pytest.approx(1.0)


def test_distance_of_too_few_clips_is_undefined():
    assert feature_distance(torch.randn(5, 2), torch.randn(1, 2), scaled=True).isnan()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_distance_of_features_that_are_not_finite_is_undefined(value):
    broken = torch.tensor([[0.0, 1.0], [value, 1.0]])
    assert feature_distance(torch.rand(4, 2), broken, scaled=False).isnan()


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_moments_keep_their_digits_where_features_are_large(offset):
    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(50, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    expected = feature_distance(real, generated, scaled=False)
    actual = feature_distance(real + offset, generated + offset, scaled=False)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
