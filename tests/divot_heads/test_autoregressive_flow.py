"""The flow's likelihood against the Jacobian of the whole clip, and its inverse."""

import math

import pytest
import torch

from divot_heads.autoregressive_flow import AutoregressiveFlowHead
from divot_lightning.errors import UserError


@pytest.fixture
def head():
    """A head whose layers are far from the identity."""
    torch.manual_seed(0)
    head = AutoregressiveFlowHead(6, 5, width=16, depth=1, num_attention_heads=2, num_couplings=5, noise_std=0.0)
    for parameter in head.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return head


def to_noise(head, hidden, features):
    return head.flow(features, head.context(hidden, features))[0]


def test_the_likelihood_is_that_of_the_change_of_variables_of_the_whole_clip(head):
    hidden, features = torch.randn(1, 4, 6), torch.randn(1, 4, 5)
    jacobian = torch.func.jacrev(lambda x: to_noise(head, hidden, x).flatten())(features).reshape(20, 20)
    noise = to_noise(head, hidden, features)
    expected = jacobian.double().slogdet().logabsdet - 0.5 * (noise.double().square() + math.log(2 * math.pi)).sum()
    assert head.log_likelihood(hidden, features).sum().item() == pytest.approx(expected.item(), abs=1e-3)
    assert abs(jacobian.double().slogdet().logabsdet.item()) > 0.1
    assert head.loss(hidden, features).item() == pytest.approx(-expected.item() / 20, abs=1e-4)


def test_a_token_depends_on_those_before_it_only(head):
    hidden, features = torch.randn(1, 4, 6), torch.randn(1, 4, 5)
    blocks = torch.func.jacrev(lambda x: to_noise(head, hidden, x)[0])(features)[:, :, 0].abs().amax(dim=(1, 3))
    assert torch.equal(blocks.triu(diagonal=1), torch.zeros(4, 4))
    assert (blocks.tril() + torch.ones(4, 4).triu(diagonal=1) > 1e-4).all()


def test_samples_turn_back_into_the_noise_they_were_made_of(head):
    hidden = torch.randn(3, 4, 6)
    features = head.sample(hidden, temperature=0.8, generator=torch.Generator().manual_seed(0))
    noise = 0.8 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_noise(head, hidden, features), noise, atol=1e-3, rtol=1e-3)


def test_a_new_head_is_the_standard_normal_distribution():
    head = AutoregressiveFlowHead(6, 4, width=16, depth=1, num_attention_heads=2, noise_std=0.0)
    target = torch.randn(2, 3, 4)
    expected = 0.5 * (target.square() + math.log(2 * math.pi)).mean()
    torch.testing.assert_close(head.loss(torch.randn(2, 3, 6), target), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_dim": 1}, "needs at least 2 features per token; there are 1"),
        ({"feature_dim": 4, "num_couplings": 0}, "num_couplings is 0"),
        ({"feature_dim": 4, "noise_std": -0.1}, "noise_std is -0.1"),
        ({"feature_dim": 4, "width": 12}, "width=12 is not allowed; give an even multiple of 8"),
    ],
)
def test_setting_out_of_range_is_refused_with_its_value(settings, message):
    with pytest.raises(UserError, match=message):
        AutoregressiveFlowHead(6, **settings)
