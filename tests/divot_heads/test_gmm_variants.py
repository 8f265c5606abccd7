"""Low-rank covariances against dense ones, a shared component against the sum over assignments, the relaxed loss."""

import pytest
import torch
from torch.distributions import Categorical, MultivariateNormal

from divot_heads import gmm_variants
from divot_heads.gmm import GMMHead
from divot_heads.gmm_variants import Mixture, mixture_nll, sample_mixture
from divot_lightning.errors import UserError


def make_mixture(rank, shared, clips=3, tokens=4):
    torch.manual_seed(0)
    shape = (clips, tokens, 2, 3)
    factors = torch.randn(*shape, rank)
    return Mixture(torch.randn(shape), 0.1 + torch.rand(shape), torch.randn(shape[:3]), factors, shared)


def dense_log_prob(mixture, target):
    """Log-density of each component, (clips, tokens, 2), by full covariance matrices in float64."""
    factors = mixture.factors_BQKCL.double()
    covariance = factors @ factors.mT + mixture.variances_BQKC.double().diag_embed()
    return MultivariateNormal(mixture.means_BQKC.double(), covariance).log_prob(target.double().unsqueeze(-2))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_token_has_the_mixture_of_dense_gaussians(rank):
    mixture, target = make_mixture(rank, shared=False), torch.randn(3, 4, 3)
    densities = (mixture.logits_BQK.double().softmax(-1) * dense_log_prob(mixture, target).exp()).sum(-1)
    assert mixture_nll(mixture, target, None).item() == pytest.approx(-densities.log().mean().item() / 3, rel=1e-4)


def test_rank_zero_is_the_loss_of_the_paper():
    torch.manual_seed(0)
    head = GMMHead(5, 3, num_components=2)
    hidden, target, mask = torch.randn(2, 4, 5), torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    torch.testing.assert_close(mixture_nll(head._mixture(hidden), target, mask), head.loss(hidden, target, mask))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_shared_component_explains_all_tokens_that_count(rank):
    mixture, target = make_mixture(rank, shared=True), torch.randn(3, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    total = 0.0
    for clip in range(2):
        kept = mask[clip].bool()
        weights = mixture.logits_BQK[clip, kept].double().mean(dim=0).softmax(-1)
        total -= (weights * dense_log_prob(mixture, target)[clip, kept].sum(dim=0).exp()).sum().log().item()
    assert mixture_nll(mixture, target, mask).item() == pytest.approx(total / (6 * 3), rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_relaxed_gradients_are_those_of_responsibilities_with_equal_parts(shared):
    """By the rule of EM: the gradient of -sum_k r_k log(w_k N_k(x)) with the responsibilities r held fixed."""
    torch.manual_seed(0)
    head = GMMHead(5, 3, num_components=4, shared_component=shared, relaxation=0.2)
    hidden, target = torch.randn(2, 4, 5), torch.randn(2, 4, 3)
    mixture = head._mixture(hidden)
    joint = dense_log_prob(mixture, target)
    logits = mixture.logits_BQK.double()
    if shared:
        joint, logits = joint.sum(dim=1), logits.mean(dim=1)
    joint = joint + logits.log_softmax(-1)
    responsibilities = 0.8 * joint.softmax(-1).detach() + 0.2 / 4
    expected = -(responsibilities * joint).sum() / target.numel()
    parameters = list(head.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    found = torch.autograd.grad(head.loss(hidden, target), parameters)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_relaxation_changes_training_only(shared):
    torch.manual_seed(0)
    strict = GMMHead(5, 3, num_components=4, shared_component=shared)
    relaxed = GMMHead(5, 3, num_components=4, shared_component=shared, relaxation=0.2)
    relaxed.load_state_dict(strict.state_dict())
    hidden, target = torch.randn(2, 4, 5), torch.randn(2, 4, 3)
    assert relaxed.loss(hidden, target) > strict.loss(hidden, target)
    assert torch.equal(relaxed.eval().loss(hidden, target), strict.loss(hidden, target))


def test_relaxation_brings_an_unused_component_to_the_data():
    """Two clusters in 64 dimensions; of two components one starts far from both, the other takes everything."""
    clusters = torch.ones(2, 1, 64) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    target = clusters.repeat(8, 1, 1) + 0.1 * torch.randn(16, 1, 64, generator=torch.Generator().manual_seed(0))
    distances = {}
    for relaxation in (0.0, 0.1):
        torch.manual_seed(0)
        head = GMMHead(1, 64, num_components=2, relaxation=relaxation)
        with torch.no_grad():
            head.proj[-1].bias[64:128] = 5.0
        optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
        for _ in range(300):
            optimizer.zero_grad()
            head.loss(torch.zeros(16, 1, 1), target).backward()
            optimizer.step()
        means = head._mixture(torch.zeros(1, 1, 1)).means_BQKC[0, 0].detach()
        distances[relaxation] = torch.cdist(clusters[:, 0], means).min(dim=1).values.max().item() / 8
    assert distances[0.0] > 0.9  # one mean between the clusters, at distance 1 in each dimension
    assert distances[0.1] < 0.2  # one mean in each


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_parts_of_a_batch_change_no_bit_of_loss_and_gradients(monkeypatch, rank, shared):
    mixture, target, calls = make_mixture(rank, shared), torch.randn(3, 4, 3), []
    inputs = [mixture.means_BQKC, mixture.variances_BQKC, mixture.logits_BQK, mixture.factors_BQKCL, target]
    log_prob = gmm_variants._log_prob
    monkeypatch.setattr(gmm_variants, "_log_prob", lambda *args: calls.append(len(args[0])) or log_prob(*args))

    def loss_and_gradients(elements):
        monkeypatch.setattr(gmm_variants, "PART_ELEMENTS", elements)
        leaves = [each.clone().requires_grad_() for each in inputs]
        loss = mixture_nll(Mixture(*leaves[:4], shared), leaves[4], None)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=rank == 0)]

    whole, parts = loss_and_gradients(2**24), loss_and_gradients(20 * (1 + rank))
    assert calls == [3, *[3] * 8]  # 12 tokens in four parts, each computed twice
    for one, other in zip(whole, parts, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_all_tokens_of_a_clip_are_sampled_from_one_component():
    mixture = make_mixture(0, shared=True, clips=4000, tokens=3)
    far = torch.tensor([-100.0, 100.0]).view(1, 1, 2, 1).expand(4000, 3, 2, 3)
    logits = mixture.logits_BQK[:1].expand(4000, -1, -1)
    mixture = Mixture(far, mixture.variances_BQKC, logits, mixture.factors_BQKCL, shared=True)
    signs = sample_mixture(mixture, generator=torch.Generator().manual_seed(0)).sign()
    assert (signs == signs[:, :1, :1]).all()
    weight = Categorical(logits=logits[0].mean(dim=0)).probs[1].item()
    assert (signs[:, 0, 0] > 0).float().mean().item() == pytest.approx(weight, abs=0.04)


@pytest.mark.parametrize("variance_scale", [1.0, 0.25])
def test_samples_have_the_covariance_of_the_low_rank_component(variance_scale):
    one = make_mixture(2, shared=False, clips=1, tokens=1)
    many = Mixture(
        *(values[:, :, :1].expand(50_000, *[-1] * (values.ndim - 1)) for values in list(vars(one).values())[:4]),
        shared=False,
    )
    samples = sample_mixture(many, variance_scale=variance_scale, generator=torch.Generator().manual_seed(0))[:, 0]
    factors = one.factors_BQKCL[0, 0, 0]
    expected = variance_scale * (factors @ factors.mT + one.variances_BQKC[0, 0, 0].diag())
    torch.testing.assert_close(samples.T.cov(), expected, atol=0.03 * expected.max().item(), rtol=0.03)
    torch.testing.assert_close(samples.mean(dim=0), one.means_BQKC[0, 0, 0], atol=0.05, rtol=0)


def test_defaults_have_the_released_parameters_only():
    assert all(name.startswith("proj.") for name in GMMHead(5, 3).state_dict())
    assert {name.split(".")[0] for name in GMMHead(5, 3, covariance_rank=1).state_dict()} == {"proj", "factors"}
    with pytest.raises(UserError, match="covariance_rank is -1"):
        GMMHead(5, 3, covariance_rank=-1)
