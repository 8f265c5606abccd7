"""The heads that sample learn a mixture of two Gaussians that depends on the hidden state.

A head that learnt mean and covariance only, or that ignored the hidden state, is outside of the bounds.
"""

from functools import cache

import pytest
import torch

from divot_heads.autoregressive_flow import AutoregressiveFlowHead
from divot_heads.diffusion import DiffusionHead
from divot_heads.energy import EnergyHead
from divot_heads.flow_clip import FlowClipHead
from divot_heads.flow_token import FlowTokenHead
from divot_heads.gmm import GMMHead
from divot_heads.meanflow import MeanFlowHead

HIDDEN = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
"""Hidden states of the two conditions."""
CENTRES = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [-0.5, 1.0]]])
"""Of both components, by condition."""
FIRST_WEIGHT = torch.tensor([0.7, 0.4])
SMALL = {"width": 64, "depth": 2}
FLOW = {"width": 32, "depth": 2, "sampling_steps": 10}
HEADS = {
    "diffusion, eps": lambda: DiffusionHead(8, 2, prediction="epsilon", sampling_steps=50, draws_per_token=1, **SMALL),
    "diffusion, v": lambda: DiffusionHead(
        8, 2, prediction="v", sampling_steps=50, draws_per_token=1, condition_dropout=0.1, **SMALL
    ),
    "gmm": lambda: GMMHead(8, 2, num_components=4, variance_scale=1.0),
    "gmm, shared": lambda: GMMHead(8, 2, num_components=4, variance_scale=1.0, shared_component=True),
    "gmm, low rank": lambda: GMMHead(8, 2, num_components=4, variance_scale=1.0, covariance_rank=1),
    "flow_token": lambda: FlowTokenHead(8, 2, draws_per_token=1, **FLOW),
    "flow_clip": lambda: FlowClipHead(8, 2, num_attention_heads=4, draws_per_clip=1, **FLOW),
    "energy": lambda: EnergyHead(8, 2, samples_per_token=4, width=32, depth=2),
    "autoregressive_flow": lambda: AutoregressiveFlowHead(8, 2, width=64, depth=1, num_attention_heads=4),
}
IN_ONE_STEP = {"meanflow": lambda: MeanFlowHead(8, 2, draws_per_token=1, **SMALL)}
"""Nearer to the mixture than a Gaussian, but not within the bounds of the others."""
JOINT = ("gmm, shared", "flow_clip", "autoregressive_flow")
CLIPS_OF_THREE_TOKENS = (*JOINT, "gmm", "flow_token", "energy")
"""Heads that are tested with them; the others learn single tokens."""
STEPS = 500


def draw(condition, tokens):
    """Return features (clips, tokens, 2); all tokens of a clip are of the same component."""
    second = (torch.rand(len(condition)) > FIRST_WEIGHT[condition]).long()
    return CENTRES[condition, second].unsqueeze(1) + 0.2 * torch.randn(len(condition), tokens, 2)


def hidden_states(name, condition):
    """Return the hidden states of clips, (clips, tokens, 8)."""
    return HIDDEN[condition].unsqueeze(1).expand(-1, 3 if name in CLIPS_OF_THREE_TOKENS else 1, -1)


@cache
def trained(name):
    """Return the head, trained once for all tests of this file."""
    torch.manual_seed(1)
    head = (HEADS | IN_ONE_STEP)[name]()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=4e-3, fused=True)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / STEPS)
        condition = torch.randint(2, (128,))
        optimizer.zero_grad()
        hidden = hidden_states(name, condition)
        head(hidden, draw(condition, hidden.shape[1])).backward()
        optimizer.step()
    return head.eval()


def energy_distance(first, second):
    """2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 for equal distributions only."""
    n = len(first)
    within = sum(torch.cdist(x, x).sum() / (n * (n - 1)) for x in (first, second))
    return (2 * torch.cdist(first, second).mean() - within).item()


def gaussian_like(features):
    """Samples of the Gaussian that has the mean and the covariance of the features."""
    return features.mean(0) + torch.randn_like(features) @ torch.linalg.cholesky(features.T.cov()).mT


@pytest.mark.parametrize("name", HEADS)
def test_samples_have_the_distribution_of_each_condition(name):
    head = trained(name)
    torch.manual_seed(3)
    for number in range(2):
        condition = torch.full((2000,), number)
        truth = draw(condition, 1).squeeze(1)
        samples = head.sample(hidden_states(name, condition), generator=torch.Generator().manual_seed(2))[:, 0]
        bound = 0.3 * energy_distance(gaussian_like(truth), truth)
        assert energy_distance(samples, truth) < bound
        torch.testing.assert_close(samples.mean(0), truth.mean(0), atol=0.2, rtol=0)
        torch.testing.assert_close(samples.std(0), truth.std(0), atol=0, rtol=0.2)


def test_meanflow_is_nearer_to_each_condition_in_one_step_than_a_gaussian():
    for condition in range(2):
        conditions = torch.full((2000,), condition)
        truth = draw(conditions, 1).squeeze(1)
        hidden = hidden_states("meanflow", conditions)
        samples = trained("meanflow").sample(hidden, generator=torch.Generator().manual_seed(2)).squeeze(1)
        assert energy_distance(samples, truth) < 0.6 * energy_distance(gaussian_like(truth), truth)


@pytest.mark.parametrize("name", CLIPS_OF_THREE_TOKENS)
def test_joint_heads_sample_tokens_that_fit_each_other_and_others_do_not(name):
    """All three tokens of a clip are of one component; of independent ones 0.7^3 + 0.3^3 = 37% of the clips are."""
    hidden = hidden_states(name, torch.zeros(1000, dtype=torch.long))
    samples = trained(name).sample(hidden, generator=torch.Generator().manual_seed(2))
    signs = samples.sum(dim=-1).sign()
    agree = (signs == signs[:, :1]).all(dim=1).float().mean().item()
    assert agree > 0.85 if name in JOINT else agree < 0.5
    assert (signs[:, 0] > 0).float().mean().item() == pytest.approx(0.7, abs=0.1)
