import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from divot_heads.gmm import GMMHead
from divot_lightning.errors import UserError
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32, masked_mean


class SettingsHead(GenerationHead):
    """A head with every kind of setting."""

    def __init__(
        self, hidden_dim: int, feature_dim: int, width: int = 8, *, sizes: tuple[int, ...] = (1, 2), **more: Any
    ) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.layer = nn.Linear(hidden_dim, feature_dim)
        self.norm = nn.LayerNorm(feature_dim)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return (self.norm(self.layer(hidden_BQD)) - target_BQC).square().mean()

    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return self.norm(self.layer(hidden_BQD))


class PlainChild(SettingsHead):
    """A head that inherits its settings."""


class FixedChild(SettingsHead):
    """A head that passes other settings on than it takes."""

    def __init__(self, hidden_dim: int, feature_dim: int, depth: int = 3) -> None:
        super().__init__(hidden_dim, feature_dim, width=depth * 2)


def test_settings_hold_defaults_and_given_values_without_the_widths():
    head = SettingsHead(4, feature_dim=2, sizes=(5,), colour="red")
    assert head.init_args == {"width": 8, "sizes": [5], "colour": "red"}
    assert (head.hidden_dim, head.feature_dim) == (4, 2)


def test_settings_are_those_of_the_class_that_is_built():
    assert PlainChild(4, 2, 16).init_args == {"width": 16, "sizes": [1, 2]}
    assert FixedChild(4, 2).init_args == {"depth": 3}


def test_later_changes_of_an_argument_do_not_reach_the_settings():
    sizes = [1]
    head = SettingsHead(4, 2, sizes=sizes)
    sizes.append(2)
    assert head.init_args["sizes"] == [1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_copies_keep_settings_and_weights(copied):
    head = SettingsHead(4, 2, width=3)
    twin = copied(head)
    assert twin.init_args == head.init_args
    assert torch.equal(twin.layer.weight, head.layer.weight)


def test_setting_that_json_cannot_hold_is_refused_by_name():
    with pytest.raises(UserError, match=r"SettingsHead: setting width=<built-in function len>"):
        SettingsHead(4, 2, width=len)


def test_wrong_call_is_refused_as_python_does():
    with pytest.raises(TypeError, match="depths"):
        FixedChild(4, 2, depths=1)
    with pytest.raises(TypeError, match="hidden_dim"):
        FixedChild()


def test_a_loss_that_is_not_one_number_is_refused_with_its_shape():
    class PerToken(SettingsHead):
        def loss(self, hidden_BQD, target_BQC, mask_BQ=None):
            return target_BQC.mean(dim=-1)

    with pytest.raises(UserError, match=r"the loss of PerToken has the shape \(2, 3\); it must be one number"):
        PerToken(4, 5)(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))


def test_head_without_sample_cannot_be_built():
    class Half(GenerationHead):
        def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
            return hidden_BQD.sum()

    with pytest.raises(TypeError, match="sample"):
        Half(4, 2)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_force_float32_computes_in_float32_under_autocast_from_any_input(hidden_dtype):
    head, hidden, target = SettingsHead(4, 2), torch.randn(3, 5, 4).to(hidden_dtype), torch.randn(3, 5, 2)
    expected = head.loss(hidden.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head.loss(hidden, target)
        assert head.sample(hidden).dtype == torch.float32
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_force_float32_casts_half_precision_parameters_and_gives_them_gradients(dtype):
    head, hidden, target = SettingsHead(4, 2).to(dtype), torch.randn(3, 5, 4), torch.randn(3, 5, 2)
    twin = copy.deepcopy(head).float()
    got, expected = head.loss(hidden, target), twin.loss(hidden, target)
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    assert head.layer.weight.grad.dtype == head.layer.weight.dtype == dtype
    torch.testing.assert_close(head.layer.weight.grad, twin.layer.weight.grad.to(dtype))


def test_force_float32_keeps_what_a_method_writes_into_parameters_and_buffers_in_half_precision():
    class Counting(SettingsHead):
        def __init__(self, hidden_dim: int, feature_dim: int) -> None:
            super().__init__(hidden_dim, feature_dim)
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("last", torch.zeros(1))

        @force_float32
        def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                self.norm.bias.copy_(torch.full((2,), 3.0))
                self.norm.bias[0] = hidden_BQD.sum() * 0
                self.norm.bias.add_(torch.ones(2))
                self.calls += 1
                self.last = torch.full((1,), 5.0)
            return super().loss(hidden_BQD, target_BQC, mask_BQ)

    head = Counting(4, 2).bfloat16()
    head.loss(torch.randn(1, 1, 4), torch.randn(1, 1, 2))
    assert head.norm.bias.tolist() == [1.0, 4.0]
    assert (head.calls.item(), head.last.item()) == (1.0, 5.0)
    assert {value.dtype for value in head.state_dict().values()} == {torch.bfloat16}


def test_force_float32_samples_in_inference_mode_and_leaves_half_precision_as_it_was():
    head, hidden = SettingsHead(4, 2).bfloat16(), torch.randn(1, 2, 4)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with torch.inference_mode():
        sampled = head.sample(hidden)
    torch.testing.assert_close(sampled, copy.deepcopy(head).float().sample(hidden).detach())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert {name for name, value in head.named_parameters() if value.requires_grad} == set(before)


def test_force_float32_ends_with_the_method():
    head = SettingsHead(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head.loss(torch.randn(1, 1, 4), torch.randn(1, 1, 2))
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == torch.bfloat16


def test_masked_mean_counts_as_a_loop_does():
    values, mask = torch.randn(4, 6), torch.rand(4, 6) > 0.5
    chosen = [values[b, q].item() for b in range(4) for q in range(6) if mask[b, q]]
    for given in (mask, mask.long(), mask.float()):
        assert masked_mean(values, given).item() == pytest.approx(sum(chosen) / len(chosen), abs=1e-6)
    assert masked_mean(values, None).item() == pytest.approx(values.mean().item())


def test_masked_mean_over_no_token_is_zero_with_a_graph():
    values = torch.randn(2, 3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert not values.grad.any()


def test_clear_masked_keeps_what_counts():
    states, mask = torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 0, 1]])
    states[0, 1] = float("nan")
    cleared = clear_masked(states, mask)
    assert torch.equal(cleared[mask.bool()], states[mask.bool()])
    assert not cleared[~mask.bool()].any()
    assert clear_masked(states, None) is states


class Shifted(GMMHead):
    def sample(self, hidden_BQD, *, temperature=1.0, generator=None):
        return super().sample(hidden_BQD, temperature=temperature, generator=generator) + 100


def test_a_subclass_with_a_sample_of_its_own_is_sampled_by_it_for_several_generators_too():
    head, hidden = Shifted(8, 4), torch.randn(1, 3, 8)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    assert (head.sample_each(hidden, seeds) > 50).all()
    assert (head.sample(hidden) > 50).all()
