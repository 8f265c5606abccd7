"""Heads whose weights ZeRO holds in bfloat16: losses, samples and gradients are those of float32 weights."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from divot_heads.diffusion import DiffusionHead
from divot_heads.gmm import GMMHead
from divot_lightning.deepspeed_zero.deepspeed_setup import prepare_deepspeed_for_cpu
from divot_lightning.deepspeed_zero.sharded_weights import gathered
from divot_lightning.parts.heads import GenerationHead, force_float32
from divot_lightning.testing import run_distributed

D, C = 6, 4
SETTINGS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 0.0,
    "bf16": {"enabled": True},
    "zero_allow_untested_optimizer": True,
}


class MixedHead(GenerationHead):
    """A parameter of its own, a layer that is called twice, and a buffer that the loss writes into."""

    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.scale = nn.Parameter(torch.rand(feature_dim))
        self.layer, self.again = nn.Linear(hidden_dim, feature_dim), nn.Linear(feature_dim, feature_dim)
        self.register_buffer("calls", torch.zeros(1))

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        self.calls += 1
        made_BQC = self.again(self.again(self.layer(hidden_BQD))) * self.scale
        return (made_BQC - target_BQC).square().mean()

    @force_float32
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Any = None) -> Tensor:
        return self.again(self.layer(hidden_BQD)).detach()


HEADS = {
    "gmm": GMMHead,
    "diffusion": partial(DiffusionHead, width=32, depth=2, sampling_steps=10),
    "mixed": MixedHead,
}
CASES = [("gmm", 3), ("diffusion", 3), ("mixed", 2), ("mixed", 3)]


def make_head(name: str) -> GenerationHead:
    """Return a head with float32 weights that bfloat16 holds exactly."""
    torch.manual_seed(4)
    head = HEADS[name](D, C)
    for parameter in head.parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn_like(parameter)).bfloat16().float()
    return head


def batch(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 + rank)
    return torch.randn(2, 3, D, generator=generator), torch.randn(2, 3, C, generator=generator)


def loss_and_sample(run: Any, head: Any, rank: int) -> tuple[Tensor, Tensor]:
    hidden, target = batch(rank)
    torch.manual_seed(rank)
    loss = run(hidden, target)
    with torch.no_grad():
        sample = head.sample(hidden, generator=torch.Generator().manual_seed(0))
    return loss, sample


def under_zero(rank: int) -> dict[tuple[str, int], dict[str, Any]]:
    import deepspeed

    prepare_deepspeed_for_cpu()
    found = {}
    for name, stage in CASES:
        head = make_head(name)
        optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
        engine, *_ = deepspeed.initialize(
            model=head, optimizer=optimizer, config={**SETTINGS, "zero_optimization": zero}
        )
        loss, sample = loss_and_sample(engine, engine.module, rank)
        engine.backward(loss)
        engine.step()
        with gathered(head.parameters()):
            after = {key: value.detach().float().clone() for key, value in head.named_parameters()}
        found[name, stage] = {"loss": loss.detach(), "sample": sample, "after": after}
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[tuple[str, int], dict[str, Any]]]:
    return run_distributed(under_zero, 2, timeout=300)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_and_samples_are_exact_and_gradients_are_those_of_float32(
    case: tuple[str, int], ranks: list[dict[tuple[str, int], dict[str, Any]]]
) -> None:
    head, losses = make_head(case[0]), []
    before = {key: value.detach().clone() for key, value in head.named_parameters()}
    for rank, found in enumerate(ranks):
        loss, sample = loss_and_sample(head, head, rank)
        torch.testing.assert_close(found[case]["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[case]["sample"], sample, rtol=1e-5, atol=1e-5)
        losses.append(loss)
    torch.stack(losses).mean().backward()
    for key, value in head.named_parameters():
        assert value.grad is not None
        # Gradients and weights are rounded to bfloat16, by 2**-8 of their size at most.
        bound = 2**-7 * (value.grad.abs().max() + before[key].abs()) + 1e-6
        assert ((ranks[0][case]["after"][key] - (before[key] - value.grad)).abs() <= bound).all(), key
