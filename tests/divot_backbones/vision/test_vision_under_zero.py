"""Vision models of transformers are trained under ZeRO-3 as without it."""

import copy

import pytest
import torch
from torch.testing import assert_close

from divot_backbones.vision.transformers_vision import TransformersVision
from divot_lightning.testing import run_distributed
from tests.divot_backbones.vision.tiny_models import TINY

IMAGE_SIZE = 24
"""Not the models' own, so that position embeddings are resized."""


def encoders():
    torch.manual_seed(0)
    return {
        name: TransformersVision(config={"model_type": name, **TINY[name]}, frozen=False, image_size=IMAGE_SIZE).eval()
        for name in TINY
    }


def loss_of(encoder, rank):
    generator = torch.Generator().manual_seed(rank)
    patches = encoder(torch.rand(1, 2, 3, 16, 16, generator=generator) * 2 - 1)
    return (patches * torch.randn(patches.shape, generator=generator)).mean()


def steps_under_zero(rank, models):
    """Take one step of SGD with each model; return how far each parameter moved."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for a minute and serves inference only
    moved = {}
    for name, encoder in models.items():
        before = copy.deepcopy(encoder.state_dict())
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
        settings |= {"zero_allow_untested_optimizer": True, "gradient_clipping": 0.0}
        optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
        engine, *_ = deepspeed.initialize(model=encoder, optimizer=optimizer, config=settings)
        engine.eval()
        engine.backward(loss_of(engine, rank))
        engine.step()
        with deepspeed.zero.GatheredParameters(list(encoder.parameters())):
            moved[name] = {key: value.detach() - before[key] for key, value in encoder.named_parameters()}
    return moved


@pytest.mark.slow
def test_a_step_under_zero_3_is_a_plain_step():
    plain = encoders()
    expected = {}
    for name, encoder in plain.items():
        torch.stack([loss_of(encoder, rank) for rank in range(2)]).mean().backward()
        expected[name] = {key: -value.grad for key, value in encoder.named_parameters()}
    for moved in run_distributed(steps_under_zero, 2, encoders()):
        assert moved.keys() == expected.keys()
        for name in expected:
            assert_close(
                moved[name], expected[name], atol=1e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )
