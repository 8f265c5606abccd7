from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from divot_heads import gmm_likelihood
from divot_heads.gmm import GMMHead
from divot_heads.gmm_likelihood import gmm_nll, gmm_sample, split_gmm_params
from divot_lightning.errors import UserError

GOLDEN = Path(__file__).parents[1] / "data" / "gmm.safetensors"
NUM_COMPONENTS = 4


@pytest.fixture
def golden() -> dict[str, Tensor]:
    """Return tensors of the released model code (TencentARC/Divot at bbb9c92): 4 components, 16 dimensions."""
    return load_file(GOLDEN)


def reference_nll(params: Tensor, target: Tensor, num_components: int) -> Tensor:
    """Return the same loss from torch.distributions, one number per token."""
    means, variances, logits = split_gmm_params(params, num_components)
    mixture = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(means, variances.sqrt()), 1))
    return -mixture.log_prob(target) / target.shape[-1]


def test_parameters_are_laid_out_as_released(golden):
    means, variances, logits = split_gmm_params(golden["params"], NUM_COMPONENTS)
    torch.testing.assert_close(means, golden["means"], atol=1e-5, rtol=0)
    torch.testing.assert_close(variances, golden["variances"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-5, rtol=0)


def test_loss_and_gradient_equal_the_released_ones(golden):
    params = golden["params"].requires_grad_()
    loss = gmm_nll(params, golden["target"], NUM_COMPONENTS)
    loss.backward()
    torch.testing.assert_close(loss, golden["loss"].squeeze(), atol=1e-5, rtol=0)
    torch.testing.assert_close(params.grad, golden["grad_params"], atol=1e-5, rtol=0)


def test_expectation_equals_the_released_one(golden):
    means, _, logits = split_gmm_params(golden["params"], NUM_COMPONENTS)
    expectation = torch.einsum("...k,...kc->...c", logits.softmax(dim=-1), means)
    torch.testing.assert_close(expectation, golden["expectation"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_elements", [1, 100, 10**6])
def test_loss_and_both_gradients_equal_those_of_torch_distributions(monkeypatch, chunk_elements, masked):
    monkeypatch.setitem(gmm_likelihood._CHUNK_ELEMENTS, "cpu", chunk_elements)
    torch.manual_seed(0)
    params = (3 * torch.randn(3, 7, 2 * 5 * 6 + 5)).double().requires_grad_()
    target = torch.randn(3, 7, 6).double().requires_grad_()
    mask = torch.rand(3, 7) > 0.4 if masked else None
    per_token = reference_nll(params, target, 5)
    expected = per_token.mean() if mask is None else per_token[mask].mean()
    expected_grads = torch.autograd.grad(expected * 2.5, (params, target))
    loss = gmm_nll(params, target, 5, mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss * 2.5, (params, target)), expected_grads)


@pytest.mark.parametrize("masked", [False, True])
def test_relaxed_loss_and_both_gradients_equal_those_of_the_definition(monkeypatch, masked):
    monkeypatch.setitem(gmm_likelihood._CHUNK_ELEMENTS, "cpu", 100)
    torch.manual_seed(0)
    params = torch.randn(3, 7, 2 * 5 * 6 + 5).double().requires_grad_()
    target = torch.randn(3, 7, 6).double().requires_grad_()
    mask = torch.rand(3, 7) > 0.4 if masked else None
    means, variances, logits = split_gmm_params(params, 5)
    components = Independent(Normal(means, variances.sqrt()), 1).log_prob(target.unsqueeze(-2)) + logits.log_softmax(-1)
    per_token = -(0.9 * components.logsumexp(-1) + 0.1 * components.mean(-1)) / 6
    expected = per_token.mean() if mask is None else per_token[mask].mean()
    loss = gmm_nll(params, target, 5, mask, relaxation=0.1)
    torch.testing.assert_close(loss, expected)
    wanted, found = (torch.autograd.grad(2.5 * each, (params, target)) for each in (expected, loss))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("chunk_elements", [1, 700, 4096])
def test_chunks_change_no_bit_of_the_gradients(monkeypatch, chunk_elements):
    def gradients(elements):
        monkeypatch.setitem(gmm_likelihood._CHUNK_ELEMENTS, "cpu", elements)
        torch.manual_seed(0)
        params, target = torch.randn(37, 2 * 4 * 16 + 4, requires_grad=True), torch.randn(37, 16, requires_grad=True)
        return torch.autograd.grad(3 * gmm_nll(params, target, 4), (params, target))

    for chunked, whole in zip(gradients(chunk_elements), gradients(2**18), strict=True):
        assert torch.equal(chunked, whole)


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setitem(gmm_likelihood._CHUNK_ELEMENTS, "cpu", 200)
    torch.manual_seed(0)
    params, target, before = torch.randn(37, 2 * 4 * 16 + 4), torch.randn(37, 16), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = params.clone().requires_grad_()
            loss = gmm_nll(leaf, target, 4)
            found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


class Allocations(TorchDispatchMode):
    """Records the largest size in bytes of each storage that is new in the block."""

    def __init__(self, *inputs):
        super().__init__()
        self.given, self.sizes = {each.untyped_storage().data_ptr() for each in inputs}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage.data_ptr() not in self.given:
                key = storage.data_ptr()
                self.sizes[key] = max(self.sizes.get(key, 0), storage.nbytes())
        return result


@pytest.mark.parametrize(("tokens", "components"), [(200, 2), (200, 32), (2000, 2)])
def test_memory_besides_the_inputs_is_one_gradient_and_chunks(monkeypatch, tokens, components):
    chunk_elements, width = 1024, 16
    monkeypatch.setitem(gmm_likelihood._CHUNK_ELEMENTS, "cpu", chunk_elements)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    params = torch.randn(tokens, 2 * components * width + components, requires_grad=True)
    target = torch.randn(tokens, width)
    with Allocations(params, target) as allocations:
        torch.autograd.grad(gmm_nll(params, target, components), params)
    *rest, largest = sorted(allocations.sizes.values())
    assert largest == params.nbytes
    assert rest[-1] <= max(4 * chunk_elements, 4 * components * width, 4 * tokens)


def test_a_second_backward_pass_is_refused():
    params = torch.randn(3, 2 * 2 * 4 + 2, requires_grad=True)
    loss = gmm_nll(params, torch.randn(3, 4), 2)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradient_of_a_variance_at_the_floor_is_zero():
    params = torch.tensor([[0.5, -30.0, 0.0]], requires_grad=True)
    gmm_nll(params, torch.zeros(1, 1), 1).backward()
    assert params.grad[0, 1] == 0
    assert params.grad[0, 0] != 0


def test_loss_needs_no_gradient_buffers_without_grad():
    params = torch.randn(2, 3, 2 * 2 * 4 + 2)
    with torch.no_grad():
        loss = gmm_nll(params, torch.randn(2, 3, 4), 2)
    assert not loss.requires_grad


def one_component(mean: float, variance: float) -> Tensor:
    """Return mixture parameters of one component in one dimension."""
    return torch.tensor([mean, torch.tensor(variance).expm1().log().item(), 0.0])


def test_samples_have_the_scaled_variance_of_their_component():
    params = one_component(3.0, 2.0).expand(20_000, 1, 3)
    samples = gmm_sample(params, 1, variance_scale=0.1, generator=torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(3.0, abs=0.02)
    assert samples.var().item() == pytest.approx(0.2, rel=0.05)


def test_temperature_multiplies_the_standard_deviation():
    params = one_component(0.0, 1.0).expand(20_000, 1, 3)
    samples = gmm_sample(params, 1, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert samples.std().item() == pytest.approx(0.5, rel=0.05)


def test_components_are_drawn_by_their_weights():
    logits = torch.tensor([0.8, 0.2]).log()
    params = torch.cat([torch.tensor([-5.0, 5.0, -4.0, -4.0]), logits]).expand(20_000, 1, 6)
    samples = gmm_sample(params, 2, generator=torch.Generator().manual_seed(0))
    assert (samples > 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_temperature_divides_the_logits_of_the_components():
    """Weights 0.8 and 0.2 at temperature 0.5 become 0.64 / 0.68 and 0.04 / 0.68."""
    params = torch.cat([torch.tensor([-5.0, 5.0, -4.0, -4.0]), torch.tensor([0.8, 0.2]).log()]).expand(20_000, 1, 6)
    samples = gmm_sample(params, 2, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert (samples > 0).float().mean().item() == pytest.approx(0.04 / 0.68, abs=0.01)


def test_temperature_zero_gives_the_mean_of_the_likeliest_component():
    params = torch.tensor([-5.0, 5.0, 1.0, 1.0, 0.0, 2.0]).expand(3, 2, 6)
    assert torch.equal(gmm_sample(params, 2, temperature=0.0), torch.full((3, 2, 1), 5.0))


def test_head_at_the_released_sizes_has_8208_outputs():
    with torch.device("meta"):
        head = GMMHead(4096, 256)
    assert [tuple(p.shape) for p in head.proj.parameters()] == [(8208, 4096), (8208,), (8208, 8208), (8208,)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_components", 0), ("variance_scale", -0.1), ("relaxation", -0.1), ("relaxation", 1), ("projector_dim", 0)],
)
def test_setting_out_of_range_is_refused_with_its_value(setting, value):
    with pytest.raises(UserError, match=f"{setting}(=| is ){value}"):
        GMMHead(8, 4, **{setting: value})


def test_released_output_projector_gives_the_recorded_parameters():
    state, recorded = (load_file(GOLDEN.with_name(f"agent_{part}.safetensors")) for part in ("state", "io"))
    head = GMMHead(hidden_dim=32, feature_dim=16, num_components=NUM_COMPONENTS)
    prefix = "output_resampler."
    head.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    torch.testing.assert_close(head.proj(recorded["hidden"]), recorded["gmm_params"], atol=1e-5, rtol=0)
