"""MeanFlow against its definition: average velocities of Gaussian features are known in closed form."""

import pytest
import torch

from divot_heads.meanflow import AverageVelocity, MeanFlowHead, regression_target
from divot_lightning.errors import UserError

MEAN, STD = 1.5, 0.4


def moments(t):
    """Mean and standard deviation of z_t = (1 - t) x + t e for x from N(1.5, 0.16)."""
    return (1 - t) * MEAN, ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def exact_average_velocity(z, r, t):
    """The flow keeps (z_t - mean_t) / std_t, so the way from t to r is known; its average velocity follows."""
    r, t = r.unsqueeze(-1), t.unsqueeze(-1)
    (mean_r, std_r), (mean_t, std_t) = moments(r), moments(t)
    way = z - mean_r - std_r / std_t * (z - mean_t)
    slope = -MEAN + (t - (1 - t) * STD**2) / std_t**2 * (z - mean_t)
    return torch.where(t - r > 1e-4, way / (t - r).clamp(min=1e-4), slope)


def exact_network(condition, state, start, end):
    return exact_average_velocity(state, start, end)


class Recorder:
    """Predicts sin(z) + r t, whose derivative is known, and keeps its inputs of the first call, for the loss."""

    def __call__(self, condition, state, start, end):
        if not hasattr(self, "noisy"):
            self.noisy, self.start, self.end = state, start.unsqueeze(-1), end.unsqueeze(-1)
        return state.sin() + (start * end).unsqueeze(-1)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_exact_average_velocity_samples_the_features_in_any_number_of_steps(steps):
    head = MeanFlowHead(4, 2, width=8, depth=1, sampling_steps=steps)
    head.average_velocity._network = exact_network
    features = head.sample(torch.zeros(5, 6, 4), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).view(5, 6, 2)
    torch.testing.assert_close(features, MEAN + STD * noise, atol=1e-4, rtol=1e-4)


def test_the_exact_average_velocity_is_the_mean_of_its_regression_target():
    """The identity of the paper: so the error has no mean and no correlation with the state."""
    torch.manual_seed(0)
    noise = torch.randn(400_000, 1)
    features = MEAN + STD * torch.randn_like(noise)
    start, end = torch.full((400_000,), 0.2), torch.full((400_000,), 0.7)
    state = 0.3 * features + 0.7 * noise
    target = regression_target(exact_average_velocity, state, start, end, noise - features)
    error = exact_average_velocity(state, start, end) - target
    assert error.std() > 0.1
    assert error.mean().item() == pytest.approx(0, abs=0.01)
    assert (error * (state - state.mean())).mean().item() == pytest.approx(0, abs=0.01)
    velocity_error = exact_average_velocity(state, start, end) - (noise - features)
    assert abs((velocity_error * (state - state.mean())).mean().item()) > 0.05


def test_the_target_of_the_network_has_the_derivative_of_finite_differences():
    torch.manual_seed(0)
    network = AverageVelocity(3, 4, 16, 2)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    (state, velocity), condition = torch.randn(2, 50, 3), torch.randn(50, 4)
    start, end = torch.rand(2, 50).sort(dim=0).values
    average, target = network(state, start, end, condition, velocity)
    ahead, behind = (network(state + h * velocity, start, end + h, condition)[0] for h in (1e-2, -1e-2))
    expected = velocity - (end - start).unsqueeze(-1) * (ahead - behind) / 2e-2
    torch.testing.assert_close(target, expected, atol=0.02, rtol=0.02)
    assert (target - velocity).abs().max() > 0.3
    assert average.requires_grad
    assert not target.requires_grad


def test_the_target_has_the_derivative_of_finite_differences():
    torch.manual_seed(0)
    state, velocity = torch.randn(2, 50, 3, dtype=torch.float64)
    start, end = torch.rand(2, 50, dtype=torch.float64).sort(dim=0).values
    u = lambda z, r, t: (z * t.unsqueeze(-1)).sin() + (r * t * t).unsqueeze(-1)  # noqa: E731
    step = 1e-5
    change = (u(state + step * velocity, start, end + step) - u(state - step * velocity, start, end - step)) / (
        2 * step
    )
    expected = velocity - (end - start).unsqueeze(-1) * change
    torch.testing.assert_close(regression_target(u, state, start, end, velocity), expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_loss_is_the_weighted_error_of_the_definition(power):
    times = {"interval_fraction": 0.25, "time_sampling": "logit_normal"}
    head = MeanFlowHead(4, 3, width=8, depth=1, draws_per_token=2, weight_power=power, **times)
    head.average_velocity._network = seen = Recorder()
    torch.manual_seed(0)
    target = torch.randn(300, 4, 3)
    loss = head.loss(torch.randn(300, 4, 4), target)
    features = torch.cat([target.reshape(-1, 3)] * 2)
    noise = (seen.noisy - (1 - seen.end) * features) / seen.end
    velocity = noise - features
    change = velocity * seen.noisy.cos() + seen.start  # of sin(z) + r t along the line
    error = seen.noisy.sin() + seen.start * seen.end - velocity + (seen.end - seen.start) * change
    squared = error.square().mean(dim=-1)
    assert loss.item() == pytest.approx((squared / (squared + 1e-3) ** power).mean().item(), rel=1e-3)
    assert (seen.end - seen.start > 1e-6).float().mean().item() == pytest.approx(0.25, abs=0.05)
    same = (seen.end - seen.start).abs() <= 1e-6
    assert seen.end[same].logit().mean().item() == pytest.approx(-0.4, abs=0.15)


def test_uniform_times_reach_from_the_features_to_the_noise():
    """Half of the rows have an interval, of which 1/9 are longer than 2/3, as differences of two uniform numbers."""
    torch.manual_seed(0)
    start, end = MeanFlowHead(4, 2, width=8, depth=1)._draw_interval(torch.zeros(40_000, 2))
    length = end - start
    assert (length > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (length > 2 / 3).float().mean().item() == pytest.approx(0.5 / 9, abs=0.005)
    assert end[length == 0].mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("interval_fraction", 1.5),
        ("weight_power", -1),
        ("sampling_steps", 0),
        ("time_std", -0.5),
        ("time_sampling", "normal"),
    ],
)
def test_setting_out_of_range_is_refused_with_its_value(setting, value):
    with pytest.raises(UserError, match=f"{setting}(=| is ){value!r}"):
        MeanFlowHead(4, 2, **{setting: value})
