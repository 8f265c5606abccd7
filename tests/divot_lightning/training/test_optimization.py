import copy
import io
import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import AdamW, Muon
from transformers import AutoConfig, AutoModelForCausalLM

from divot_lightning.checkpoint.optimizer_state import family
from divot_lightning.errors import UserError
from divot_lightning.parts.optimizers import TrainedParameter, scheduled_fraction
from divot_lightning.training.optimization import configure_optimizer, inner_matrices, trained_parameters
from divot_optimizers.adamw import AdamWOptimizer
from divot_optimizers.muon import JointOptimizer, MuonOptimizer, orthogonalized


class Model(nn.Module):
    """Every kind of parameter that the rules tell apart."""

    outer_layers = ("embed", "head")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 6)
        self.register_parameter("position_LD", nn.Parameter(torch.randn(3, 6)))
        self.queries = nn.Parameter(torch.randn(2, 6))
        self.inner = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 8)])
        self.norm = nn.LayerNorm(8)
        self.convolution = nn.Conv1d(2, 2, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x):
        state = self.embed(x) + self.position_LD + self.frozen(self.queries).sum()
        state = self.norm(self.inner[1](torch.tanh(self.inner[0](state))))
        return self.head(self.convolution(state[:2]))


MATRICES = {"inner.0.weight", "inner.1.weight"}
VECTORS = {"embed.bias", "inner.0.bias", "inner.1.bias", "norm.weight", "norm.bias", "convolution.bias", "head.bias"}
SETTINGS = {"lr": 0.01, "weight_decay": 0.3, "warmup_steps": 3, "final_lr_fraction": 0.1}
BETAS, EPS = (0.9, 0.98), 1e-6


def train(model, setup, steps, first=0):
    """Train as Lightning does: one closure and one step of the schedule per step; return the rates."""
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    rates = []
    for step in range(first, first + steps):
        inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))

        def closure(inputs=inputs):
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        rates.append([group["lr"] for group in optimizer.param_groups])
        assert optimizer.step(closure).item() > 0
        schedule.step()
    return rates


def configured(model, total_steps=10, name="adamw", **changes):
    settings = {**SETTINGS, **changes}
    optimizer = MuonOptimizer(matrix_lr=0.02, **settings) if name == "muon" else AdamWOptimizer(**settings)
    return configure_optimizer(model, optimizer, total_steps)


def names_of(model, parameters):
    names = {id(value): name for name, value in model.named_parameters()}
    return [names[id(value)] for value in parameters]


@pytest.mark.parametrize(("warmup", "total", "final"), [(0, 10, 0.05), (5, 20, 0.0), (3, 3, 0.5), (10, 4, 0.2)])
def test_the_rate_rises_linearly_and_falls_as_a_half_cosine(warmup, total, final):
    for step in range(30):
        rate = scheduled_fraction("cosine", step, warmup_steps=warmup, total_steps=total, final_fraction=final)
        if step < warmup:
            expected = (step + 1) / warmup
        elif step >= total:
            expected = final if total > warmup or step > warmup else 1.0
        else:
            # cos^2 of the half angle runs from 1 to 0 over the steps after the warmup.
            half_angle = math.pi / 2 * (step - warmup) / (total - warmup)
            expected = final + (1 - final) * math.cos(half_angle) ** 2
        assert rate == pytest.approx(expected, abs=1e-12), step


def test_the_schedule_is_that_of_the_settings_and_stepped_every_step():
    model = Model()
    setup = configured(model, total_steps=10, name="muon")
    assert setup["lr_scheduler"]["interval"] == "step"
    rates = train(model, setup, 12)
    for step, row in enumerate(rates):
        share = scheduled_fraction("cosine", step, warmup_steps=3, total_steps=10, final_fraction=0.1)
        assert row == pytest.approx([0.02 * share, 0.01 * share, 0.01 * share])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_trainable_parameter_is_in_exactly_one_group(name):
    model = Model()
    groups = configured(model, name=name)["optimizer"].param_groups
    found = names_of(model, (value for group in groups for value in group["params"]))
    assert sorted(found) == sorted(n for n, value in model.named_parameters() if value.requires_grad)
    assert not [n for n in found if n.startswith("frozen")]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_decay(name):
    model = Model()
    for group in configured(model, name=name)["optimizer"].param_groups:
        decays = {n not in VECTORS for n in names_of(model, group["params"])}
        assert decays == {group["weight_decay"] > 0}
        assert group["weight_decay"] in (0.0, 0.3)


def test_muon_gets_the_inner_matrices_only():
    model = Model()
    optimizer = configured(model, name="muon")["optimizer"]
    muon, adamw = optimizer.parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    assert set(names_of(model, (v for group in muon.param_groups for v in group["params"]))) == MATRICES


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_stage_of_which_all_is_frozen_is_refused(name):
    with pytest.raises(UserError, match="all parameters of a Model are frozen"):
        configured(Model().requires_grad_(False), name=name)


@pytest.mark.parametrize(("is_inner", "only"), [(True, Muon), (False, AdamW)])
def test_muon_leaves_out_an_optimizer_without_parameters(is_inner, only):
    value = nn.Parameter(torch.ones(2, 2))
    optimizer = MuonOptimizer(**SETTINGS).build([TrainedParameter("one", value, (2, 2), is_inner_matrix=is_inner)])
    assert [type(part) for part in optimizer.parts] == [only]
    value.grad = torch.ones(2, 2)
    optimizer.step()
    assert (value != 1).all()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (5, 20), (20, 5)])
def test_the_float32_iteration_keeps_singular_vectors_and_maps_singular_values(shape):
    torch.manual_seed(0)
    matrix, coefficients = torch.randn(shape), (3.4445, -4.7750, 2.0315)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = sum(c * values**power for c, power in zip(coefficients, (1, 3, 5), strict=True))
    expected = left @ values.diag() @ right
    torch.testing.assert_close(orthogonalized(matrix, *coefficients), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (16, 48)])
def test_steps_of_muon_in_float32_are_those_of_torch_up_to_the_rounding_of_bfloat16(shape):
    torch.manual_seed(0)
    gradients, moved = torch.randn(3, *shape), {}
    for kind in ("bfloat16", "float32"):
        value = nn.Parameter(torch.ones(shape))
        entry = TrainedParameter("inner", value, shape, is_inner_matrix=True)
        other = TrainedParameter("outer", nn.Parameter(torch.ones(1)), (1,))
        muon = MuonOptimizer(**SETTINGS, matrix_lr=0.02, iteration_dtype=kind).build([entry, other]).parts[0]
        assert isinstance(muon, Muon)
        assert family(muon) == "Muon"  # so that a run can be resumed with the other type
        for value.grad in gradients:
            muon.step()
        moved[kind] = value.detach() - 1
    error = (moved["float32"] - moved["bfloat16"]).norm() / moved["bfloat16"].norm()
    assert 0 < error < 0.03


@pytest.mark.parametrize(
    ("kind", "supported", "warned"), [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)]
)
def test_a_cpu_without_bfloat16_is_told_of_float32(kind, supported, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    entry = TrainedParameter("inner", nn.Parameter(torch.ones(3, 4)), (3, 4), is_inner_matrix=True)
    other = TrainedParameter("outer", nn.Parameter(torch.ones(1)), (1,))
    MuonOptimizer(**SETTINGS, iteration_dtype=kind).build([entry, other])
    assert ("iteration_dtype float32" in caplog.text) == warned


def test_names_do_not_decide_what_muon_gets():
    model = nn.Module()
    model.embedder, model.positional_mlp, model.lm_header = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    model.words, model.matrix = nn.Embedding(5, 3), nn.Parameter(torch.ones(3, 3))
    chosen = names_of(model, inner_matrices(model))
    assert set(chosen) == {"embedder.weight", "positional_mlp.weight", "lm_header.weight"}


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_of_a_language_model_is_not_for_muon(tied):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model("llama", **sizes, vocab_size=11, tie_word_embeddings=tied)
    model = nn.ModuleDict({"language_model": AutoModelForCausalLM.from_config(config)})
    chosen = set(names_of(model, inner_matrices(model)))
    assert len(chosen) == 7
    assert all(".layers.0." in name for name in chosen)


def test_adamw_steps_as_torchs_own_with_these_rates():
    model = Model()
    other = copy.deepcopy(model)
    train(model, configured(model), 4)
    trained = [(n, value) for n, value in other.named_parameters() if value.requires_grad]
    reference = AdamW(
        [
            {"params": [v for n, v in trained if n not in VECTORS], "weight_decay": 0.3},
            {"params": [v for n, v in trained if n in VECTORS], "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
    )
    step_by_hand(other, [reference], [0.01], 4)
    assert_equal(model, other)


def test_muon_with_adamw_steps_as_the_two_apart():
    model = Model()
    other = copy.deepcopy(model)
    train(model, configured(model, name="muon"), 4)
    trained = [(n, value) for n, value in other.named_parameters() if value.requires_grad]
    muon = Muon([v for n, v in trained if n in MATRICES], weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(
        [
            {"params": [v for n, v in trained if n not in MATRICES | VECTORS], "weight_decay": 0.3},
            {"params": [v for n, v in trained if n in VECTORS], "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
    )
    step_by_hand(other, [muon, adamw], [0.02, 0.01], 4)
    assert_equal(model, other)


def step_by_hand(model, optimizers, peaks, steps):
    for step in range(steps):
        share = (step + 1) / 3 if step < 3 else 1.0  # four steps end where the cosine starts
        inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model(inputs).square().mean().backward()
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()


def assert_equal(model, other):
    for (name, value), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters_do_not_move_and_all_others_do(name):
    model = Model()
    before = {n: value.clone() for n, value in model.named_parameters()}
    train(model, configured(model, name=name), 2)
    for n, value in model.named_parameters():
        assert torch.equal(value, before[n]) == n.startswith("frozen"), n


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_stopped_in_the_middle_resumes_bit_for_bit(name):
    whole = Model()
    setup = configured(whole, name=name)
    rates = train(whole, setup, 8)

    first = Model()
    setup = configured(first, name=name)
    assert train(first, setup, 4) == rates[:4]
    stored = {"model": first.state_dict(), "optimizer": setup["optimizer"].state_dict()}
    stored["schedule"] = setup["lr_scheduler"]["scheduler"].state_dict()
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)

    second = Model()
    setup = configured(second, name=name)
    second.load_state_dict(stored["model"])
    setup["optimizer"].load_state_dict(stored["optimizer"])
    setup["lr_scheduler"]["scheduler"].load_state_dict(stored["schedule"])
    assert train(second, setup, 4, first=4) == rates[4:]
    assert len({row[0] for row in rates[4:]}) == 4
    for (n, value), other in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(value, other), n


def test_after_loading_the_schedule_still_turns_the_parts_own_rates():
    model = Model()
    setup = configured(model, name="muon")
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, setup, 2)
    for part in optimizer.parts:
        for group in part.param_groups:
            assert group["lr"] == pytest.approx(group["initial_lr"] * 1.0)
    schedule.step()
    schedule.step()
    assert optimizer.parts[0].param_groups[0]["lr"] < 0.02
    assert isinstance(optimizer, JointOptimizer)


def test_gradients_are_cleared_in_both_parts():
    model = Model()
    setup = configured(model, name="muon")
    train(model, setup, 1)
    setup["optimizer"].zero_grad()
    assert all(value.grad is None for value in model.parameters())


def test_other_schedules_fall_linearly_or_stay_at_the_peak():
    steps = [0, 2, 3, 4, 5, 6]
    linear = AdamWOptimizer(schedule="linear", warmup_steps=2, final_lr_fraction=0.1)
    assert [linear.lr_fraction(step, 6) for step in steps] == pytest.approx([0.5, 1.0, 0.775, 0.55, 0.325, 0.1])
    constant = AdamWOptimizer(schedule="constant", warmup_steps=2)
    assert [constant.lr_fraction(step, 6) for step in steps] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_settings_without_effect_or_out_of_range_are_refused():
    with pytest.raises(UserError, match="lr is 0; it must be above 0"):
        AdamWOptimizer(lr=0)
    with pytest.raises(UserError, match="final_lr_fraction has no effect on a constant schedule"):
        AdamWOptimizer(schedule="constant", final_lr_fraction=0.5)


def test_all_parameters_decay_where_the_recipe_says_so():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    (group,) = configure_optimizer(model, AdamWOptimizer(decayed="all", **SETTINGS), 10)["optimizer"].param_groups
    assert group["weight_decay"] == 0.3
    assert {id(value) for value in group["params"]} == {id(value) for value in model.parameters()}


def test_the_kernel_for_cpus_steps_as_torchs_default_up_to_rounding():
    ours, expected = Model(), Model()
    settings = AdamWOptimizer(**SETTINGS)
    plain = AdamW(
        [
            {"params": [value for value in expected.parameters() if value.requires_grad and value.ndim > 1]},
            {"params": [value for value in expected.parameters() if value.requires_grad and value.ndim == 1]}
            | {"weight_decay": 0.0},
        ],
        lr=SETTINGS["lr"],
        betas=BETAS,
        eps=EPS,
        weight_decay=SETTINGS["weight_decay"],
    )
    for model, optimizer in ((ours, settings.build(trained_parameters(ours))), (expected, plain)):
        for step in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
    for value, other in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_with_the_kernel_for_cpus_under_mixed_precision():
    """Lightning refuses to clip the gradients of an optimizer that could scale them."""
    plugin = MixedPrecision("bf16-mixed", "cpu")
    model = Model()
    optimizer = configured(model)["optimizer"]
    assert optimizer.defaults["fused"]
    model(torch.ones(3, 4)).sum().backward()
    plugin.clip_gradients(optimizer, clip_val=1e-3)
    norm = nn.utils.get_total_norm([value.grad for value in model.parameters() if value.grad is not None])
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)
