"""The energy score against closed forms and against the definition."""

import math

import pytest
import torch

from divot_heads.energy import EnergyHead, energy_score
from divot_lightning.errors import UserError


def gaussian_crps(mean, std, target):
    """Closed form of the energy score of a Gaussian in one dimension (Gneiting and Raftery 2007, section 4.2)."""
    z = (target - mean) / std
    density, below = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return std * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("num_samples", [2, 8])
def test_the_estimate_is_unbiased_for_any_number_of_samples(num_samples):
    torch.manual_seed(0)
    samples = 0.5 + 2.0 * torch.randn(num_samples, 100_000, 1)
    scores = energy_score(samples, torch.full((100_000, 1), 1.5))
    error = scores.std().item() / math.sqrt(100_000)
    assert scores.mean().item() == pytest.approx(gaussian_crps(0.5, 2.0, 1.5), abs=5 * error)


@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_the_score_is_the_sum_of_the_definition(exponent):
    torch.manual_seed(0)
    samples, target = torch.randn(4, 3), torch.randn(3)
    norm = lambda difference: difference.square().sum().sqrt() ** exponent  # noqa: E731
    near = sum(norm(sample - target) for sample in samples) / 4
    apart = sum(norm(samples[i] - samples[j]) for i in range(4) for j in range(4) if i != j) / 12
    torch.testing.assert_close(energy_score(samples, target, exponent), near - apart / 2)


def test_only_the_distribution_of_the_targets_has_the_lowest_score():
    torch.manual_seed(0)
    target = torch.randn(20_000, 2)
    score = lambda mean, std: energy_score(mean + std * torch.randn(8, 20_000, 2), target).mean().item()  # noqa: E731
    true = score(0.0, 1.0)
    assert all(true + 0.003 < score(mean, std) for mean, std in [(0.3, 1.0), (0.0, 0.6), (0.0, 1.5), (0.0, 0.0)])


def test_the_loss_is_the_score_of_samples_over_the_root_of_the_width():
    torch.manual_seed(0)
    head = EnergyHead(4, 9, width=8, depth=1, samples_per_token=2)
    head.generator = Shift()
    hidden, target = torch.randn(50, 20, 4), torch.randn(50, 20, 9)
    torch.manual_seed(1)
    loss = head.loss(hidden, target)
    torch.manual_seed(1)
    first, second = torch.randn(2000, 9).view(2, 50, 20, 9) + hidden[..., :1]
    near = 0.5 * ((first - target).norm(dim=-1) + (second - target).norm(dim=-1))
    expected = (near - 0.5 * (first - second).norm(dim=-1)).mean() / 3
    torch.testing.assert_close(loss, expected)


def test_a_sample_is_what_the_generator_makes_of_standard_normal_noise():
    head = EnergyHead(4, 9, width=8, depth=1)
    head.generator = Shift()
    hidden = torch.randn(5, 6, 4)
    features = head.sample(hidden, temperature=0.7, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(30, 9, generator=torch.Generator().manual_seed(0)).view(5, 6, 9)
    torch.testing.assert_close(features, 0.7 * noise + hidden[..., :1])


def test_equal_samples_have_a_finite_gradient():
    samples = torch.zeros(3, 2, 4, requires_grad=True)
    energy_score(samples, torch.zeros(2, 4)).sum().backward()
    assert samples.grad.isfinite().all()


@pytest.mark.parametrize(("setting", "value"), [("samples_per_token", 1), ("exponent", 2.0), ("exponent", 0.5)])
def test_setting_out_of_range_is_refused_with_its_value(setting, value):
    with pytest.raises(UserError, match=f"{setting}(=| is ){value}"):
        EnergyHead(8, 4, **{setting: value})


class Shift(torch.nn.Module):
    def forward(self, noise, condition):
        return noise + condition[:, :1]
