"""Tests that every optimizer part has to pass; subclass `OptimizerConformance` for your own."""

import copy
import io
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.testing import assert_close

from divot_lightning.checkpoint.optimizer_state import leaf_optimizers
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.part import spec_of
from divot_lightning.training.optimization import configure_optimizer, trained_parameters

TOTAL_STEPS = 12


class OptimizerConformance:
    """Subclass it in a test file, named `Test...`, and define `make_optimizer`.

    Attributes:
        learning_steps: Steps after which a small regression must have lost half of its loss.
    """

    learning_steps: int = 60

    def make_optimizer(self) -> TrainingOptimizer:
        """Build the optimizer with settings for a small network: a warmup of 2 steps, a learning rate that learns."""
        raise NotImplementedError("define make_optimizer")

    def test_every_trained_parameter_is_in_exactly_one_group(self) -> None:
        """Frozen parameters are in none."""
        model = _Model()
        groups = self.make_optimizer().build(trained_parameters(model), AdamW).param_groups
        found = sorted(id(value) for group in groups for value in group["params"])
        expected = sorted(id(value) for value in model.parameters() if value.requires_grad)
        assert found == expected, f"{len(found)} parameters are in groups; {len(expected)} are trained, each once"

    def test_schedule_changes_the_rate_of_every_group(self) -> None:
        """Each group has a peak rate, and the schedule multiplies it."""
        configured = self._configure(_Model())
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        peaks = [group["initial_lr"] for group in optimizer.param_groups]
        assert min(peaks) > 0, f"peak rates are {peaks}"
        for step in range(4):
            fraction = self.make_optimizer().lr_fraction(step, TOTAL_STEPS)
            assert 0 <= fraction <= 1, f"lr_fraction({step}, {TOTAL_STEPS}) is {fraction}"
            for part in leaf_optimizers([optimizer]):
                for group in part.param_groups:
                    assert_close(group["lr"], group["initial_lr"] * fraction)
            optimizer.step()
            schedule.step()

    def test_step_calls_the_closure_and_returns_its_loss(self) -> None:
        """Lightning computes gradients in the closure."""
        model = _Model()
        optimizer = self._configure(model)["optimizer"]
        assert optimizer.step(_closure(model, optimizer, 0)) is not None, "step(closure) returns no loss"

    def test_parameters_without_gradient_do_not_move(self) -> None:
        """A skipped step has no gradients: neither decay nor moments may then change a parameter."""
        model = _Model()
        optimizer = self._configure(model)["optimizer"]
        optimizer.step(_closure(model, optimizer, 0))
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_run_that_was_stopped_resumes_bit_for_bit(self) -> None:
        """State survives torch.save with weights only."""
        whole = _Model()
        _train(whole, self._configure(whole), range(6))
        first = _Model()
        configured = self._configure(first)
        _train(first, configured, range(3))
        file = io.BytesIO()
        torch.save([first.state_dict(), configured["optimizer"].state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        second = _Model()
        second.load_state_dict(weights)
        resumed = self._configure(second)
        resumed["optimizer"].load_state_dict(state)
        resumed["lr_scheduler"]["scheduler"].load_state_dict(configured["lr_scheduler"]["scheduler"].state_dict())
        _train(second, resumed, range(3, 6))
        assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)

    def test_state_of_a_parameter_can_be_stored(self) -> None:
        """Checkpoints store tensors of the parameter's shape and scalars, by parameter."""
        model = _Model()
        optimizer = self._configure(model)["optimizer"]
        optimizer.step(_closure(model, optimizer, 0))
        for part in leaf_optimizers([optimizer]):
            for value, state in part.state.items():
                for name, entry in state.items():
                    assert torch.is_tensor(entry), f"state {name!r} is a {type(entry).__name__}, no tensor"
                    assert entry.shape in (value.shape, ()), f"state {name!r} has shape {tuple(entry.shape)}"

    def test_learns(self) -> None:
        """The loss of a small regression falls below a half."""
        model = _Model()
        configured = configure_optimizer(model, self.make_optimizer(), self.learning_steps)
        losses = _train(model, configured, [0] * self.learning_steps)
        assert losses[-1] < losses[0] / 2, f"the loss went from {losses[0]} to {losses[-1]}"

    def test_settings_rebuild_the_optimizer(self) -> None:
        """`init_args` survives JSON and gives an equal optimizer."""
        optimizer = self.make_optimizer()
        spec = spec_of(optimizer)
        twin = type(optimizer)(**json.loads(json.dumps(spec.init_args)))
        assert twin.init_args == optimizer.init_args

    def _configure(self, model: nn.Module) -> Any:
        return configure_optimizer(model, self.make_optimizer(), TOTAL_STEPS)


class _Model(nn.Module):
    """Matrices between hidden states, outer layers, vectors and a frozen layer."""

    outer_layers = ("read", "write")

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.read = nn.Linear(4, 8)
            self.inner = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)
            self.frozen = nn.Linear(8, 8).requires_grad_(False)
            self.write = nn.Linear(8, 2)

    def forward(self, inputs_B4: Tensor) -> Tensor:
        hidden_B8 = torch.tanh(self.inner(self.read(inputs_B4)))
        return self.write(self.norm(hidden_B8 + self.frozen(hidden_B8)))


def _closure(model: nn.Module, optimizer: Optimizer, seed: int) -> Any:
    inputs_B4 = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (model(inputs_B4) - inputs_B4[:, :2]).square().mean()
        loss.backward()
        return loss

    return closure


def _train(model: nn.Module, configured: Any, seeds: Any) -> list[float]:
    """Train as Lightning does, one step per seed of a batch, and return the losses."""
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    losses = []
    for seed in seeds:
        losses.append(optimizer.step(_closure(model, optimizer, seed)).item())
        schedule.step()
    return losses
