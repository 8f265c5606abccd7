import numpy as np
import pytest
import torch
from scipy import stats

from divot_backbones.objectives.rectified_flow import RectifiedFlow
from divot_lightning.errors import UserError
from divot_lightning.testing.objective_conformance import ObjectiveConformance


class TestRectifiedFlow(ObjectiveConformance):
    def make_objective(self):
        return RectifiedFlow(shift=3.0)


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("time_sampling", ["uniform", "logit_normal"])
def test_times_have_the_distribution_that_is_named(shift, time_sampling):
    objective, generator = RectifiedFlow(shift, time_sampling), torch.Generator().manual_seed(0)
    times = objective.sample_times(4000, 0.0, device=torch.device("cpu"), generator=generator).numpy()
    sigma = times.astype(np.float64) / 1000
    before = sigma / (shift - (shift - 1) * sigma)
    if time_sampling == "uniform":
        assert stats.kstest(before, "uniform").pvalue > 0.01
    else:
        assert stats.kstest(np.log(before / (1 - before)), "norm").pvalue > 0.01


def test_the_path_is_straight_and_the_target_its_velocity():
    objective, clean, noise = RectifiedFlow(), torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    times = torch.tensor([0.0, 250.0, 1000.0])
    noisy = objective.add_noise(clean, noise, times)
    for clip, sigma in enumerate((0.0, 0.25, 1.0)):
        torch.testing.assert_close(noisy[clip], clean[clip] + sigma * (noise - clean)[clip])
    assert torch.equal(objective.target(clean, noise, times), noise - clean)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_sampling_takes_euler_steps_over_shifted_noise_levels(shift, steps):
    sampler, state = RectifiedFlow(shift).sampler(steps), torch.randn(2, 3, dtype=torch.float32)
    sigmas = [shifted(1 - index / steps, shift) for index in range(steps)] + [0.0]
    assert sampler.times == pytest.approx([1000 * sigma for sigma in sigmas[:-1]], rel=1e-5)
    expected = state.double()
    for index in range(steps):
        velocity = torch.full_like(state, index + 1.0)
        state = sampler.step(index, velocity, state, torch.empty)
        expected = expected + (sigmas[index + 1] - sigmas[index]) * (index + 1.0)
        torch.testing.assert_close(state.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"), [({"shift": 0.0}, "shift is 0.0"), ({"time_sampling": "beta"}, "time_sampling is 'beta'")]
)
def test_settings_that_are_not_allowed_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RectifiedFlow(**settings)


def test_no_step_is_refused():
    with pytest.raises(UserError, match=r"sampling\.steps is 0"):
        RectifiedFlow().sampler(0)
