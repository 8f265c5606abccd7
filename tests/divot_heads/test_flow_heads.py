"""Rectified flow per token and per clip, against the definition with a known network or a known best velocity."""

import pytest
import torch
from torch import nn

from divot_heads.flow_clip import FlowClipHead
from divot_heads.flow_token import FlowTokenHead
from divot_lightning.errors import UserError

HEADS = {
    "token": lambda **settings: FlowTokenHead(8, 3, width=8, depth=1, **settings),
    "clip": lambda **settings: FlowClipHead(8, 3, width=8, depth=1, num_attention_heads=2, **settings),
}
MEAN, STD = 2.0, 0.5


class Recorder(nn.Module):
    """Keeps its inputs and predicts a known function of them."""

    def forward(self, noisy, time, condition, mask=None):
        self.noisy, self.time, self.condition = noisy, time, condition
        return 0.3 * noisy + 0.1


class BestVelocity(nn.Module):
    """E[noise - features | noisy] for features from N(2, 0.25), by the regression of jointly Gaussian numbers."""

    def forward(self, noisy, time, condition, mask=None):
        s = (time / 1000).view(-1, *[1] * (noisy.ndim - 1))
        covariance, variance = s - (1 - s) * STD**2, (1 - s) ** 2 * STD**2 + s**2
        return -MEAN + covariance / variance * (noisy - (1 - s) * MEAN)


class Conditional(nn.Module):
    """A velocity that is the first number of the condition."""

    def forward(self, noisy, time, condition, mask=None):
        return condition[..., :1].expand_as(noisy)


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_is_the_error_of_the_velocity_on_the_line_from_features_to_noise(kind):
    draws = {"token": "draws_per_token", "clip": "draws_per_clip"}[kind]
    head = HEADS[kind](condition_dropout=0.0, **{draws: 3})
    head.denoiser = seen = Recorder()
    torch.manual_seed(0)
    hidden, target = torch.randn(200, 5, 8), torch.randn(200, 5, 3)
    loss = head.loss(hidden, target)
    features = torch.cat([target] * 3)
    s = (seen.time / 1000).reshape(-1, 5, 1) if kind == "token" else (seen.time / 1000).view(-1, 1, 1)
    noise = (seen.noisy.reshape(features.shape) - (1 - s) * features) / s
    predicted = 0.3 * seen.noisy.reshape(features.shape) + 0.1
    assert loss.item() == pytest.approx((predicted - (noise - features)).square().mean().item(), rel=1e-3)
    assert torch.equal(seen.condition.reshape(600, 5, 8), torch.cat([hidden] * 3))
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert s.logit().mean().item() == pytest.approx(0, abs=0.2)
    assert s.logit().std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("solver", "steps", "shift"), [("euler", 400, 1.0), ("midpoint", 40, 1.0), ("euler", 400, 3.0)]
)
@pytest.mark.parametrize("kind", HEADS)
def test_the_best_velocity_turns_noise_into_the_features_that_belong_to_it(kind, solver, steps, shift):
    """For Gaussian features the flow is linear: noise e ends at 2 + 0.5 e."""
    head = HEADS[kind](sampling_steps=steps, solver=solver, shift=shift)
    head.denoiser = BestVelocity()
    features = head.sample(torch.zeros(4, 6, 8), temperature=0.7, generator=torch.Generator().manual_seed(0))
    noise = 0.7 * torch.randn(24, 3, generator=torch.Generator().manual_seed(0)).view(4, 6, 3)
    torch.testing.assert_close(features, MEAN + STD * noise, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_guidance_exaggerates_the_difference_that_the_condition_makes(kind):
    """The velocity is u + g (c - u); with constant velocities the features are noise minus it."""
    head = HEADS[kind](guidance=3.0)
    head.denoiser = Conditional()
    head.condition_dropout.unconditional_D.data.fill_(0.5)
    features = head.sample(torch.full((2, 3, 8), 2.0), temperature=0.0)
    torch.testing.assert_close(features, torch.full((2, 3, 3), -(0.5 + 3.0 * (2.0 - 0.5))))


@pytest.mark.parametrize(
    "setting",
    [
        {"time_sampling": "normal"},
        {"solver": "heun"},
        {"sampling_steps": 0},
        {"shift": 0.0},
        {"condition_dropout": 1.0},
        {"guidance": 2.0, "condition_dropout": 0.0},
    ],
)
@pytest.mark.parametrize("kind", HEADS)
def test_setting_out_of_range_is_refused_with_its_value(kind, setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(UserError, match=f"{name}(=| is ){value!r}"):
        HEADS[kind](**setting)


def test_masked_tokens_are_invisible_to_the_others_of_the_clip():
    torch.manual_seed(0)
    head = HEADS["clip"]()
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    noisy, hidden = torch.randn(2, 4, 3), torch.randn(2, 4, 8)
    mask, time = torch.tensor([[1, 1, 0, 1]] * 2), torch.tensor([100.0, 700.0])
    before = head.denoiser(noisy, time, hidden, mask)
    noisy[:, 2], hidden[:, 2] = 9.0, -5.0
    after = head.denoiser(noisy, time, hidden, mask)
    torch.testing.assert_close(after[:, [0, 1, 3]], before[:, [0, 1, 3]])
    assert (after[:, 2] - before[:, 2]).abs().max() > 0.01
    noisy[:, 1] = 4.0
    assert (head.denoiser(noisy, time, hidden, mask)[:, 0] - after[:, 0]).abs().max() > 1e-4
