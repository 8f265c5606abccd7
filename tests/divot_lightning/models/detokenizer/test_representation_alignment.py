from functools import partial

import pytest
import torch
from torch import nn

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.vision.clip import ClipVision
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.representation_alignment import (
    RepresentationAlignment,
    RepresentationAlignmentConfig,
    captured_output,
    hidden_as_grid,
    negative_cosine,
    resize_patches,
)

VISION = partial(ClipVision, image_size=8, patch_size=4, width=6, layers=1, heads=2)
CONFIG = partial(RepresentationAlignmentConfig, vision=VISION, block="blocks.0", width=12, projector_width=16)


def denoiser(**changes):
    sizes = {"channels": 3, "frames": 4, "grid": (2, 2), "condition_tokens": 2, "condition_dim": 5}
    return VideoDiT(**sizes, **{"patch_frames": 2, "width": 12, "layers": 2, "heads": 2, **changes})


def video(batch=2):
    return torch.rand(batch, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_loss_is_minus_the_mean_of_scalar_products_of_unit_vectors():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    pairs = zip(first.flatten(0, 1), second.flatten(0, 1), strict=True)
    expected = -sum(float(a @ b / (a @ a * (b @ b)) ** 0.5) for a, b in pairs) / 6
    assert negative_cosine(first, second).item() == pytest.approx(expected, abs=1e-6)
    assert negative_cosine(first, 3 * first).item() == pytest.approx(-1.0, abs=1e-6)


def test_patches_are_averaged_over_the_cells_of_a_coarser_grid():
    # 4 steps of 2 x 2 patches with one channel, to 2 steps of 1 x 2: means over two steps and two rows.
    patches = torch.arange(16.0).reshape(1, 4, 4, 1)
    resized = resize_patches(patches, (2, 2), (2, 1, 2))
    expected = patches.reshape(2, 2, 2, 2).mean(dim=(1, 2))
    assert torch.equal(resized[0, :, 0, :, 0], expected)
    assert torch.equal(resize_patches(patches, (2, 2), (4, 2, 2)).flatten(2, 3), patches.reshape(1, 4, 4, 1))


@pytest.mark.parametrize("layout", ["whole sequence", "per frame", "maps"])
def test_hidden_states_of_every_layout_come_to_their_positions(layout):
    grid_BTHWD = torch.randn(2, 3, 4, 5, 6)
    hidden = {
        "whole sequence": grid_BTHWD.reshape(2, 60, 6),
        "per frame": grid_BTHWD.reshape(6, 20, 6),
        "maps": grid_BTHWD.reshape(6, 4, 5, 6).permute(0, 3, 1, 2),
    }[layout]
    assert torch.equal(hidden_as_grid(hidden, 2, None if layout == "maps" else (3, 4, 5)), grid_BTHWD)


@pytest.mark.parametrize(("shape", "grid"), [((40, 3, 6), (3, 4, 5)), ((2, 60, 6), None), ((2, 6), (3, 4, 5))])
def test_hidden_states_in_another_order_are_refused(shape, grid):
    with pytest.raises(UserError, match=r"repa\.block returns"):
        hidden_as_grid(torch.zeros(shape), 2, grid)


@pytest.mark.parametrize(
    ("model", "block"),
    [
        (denoiser(), "blocks.1"),
        (denoiser(gradient_checkpointing=True), "blocks.1"),
        (denoiser(patch_frames=4, layers=3), "blocks.0"),
    ],
)
def test_the_loss_reaches_the_blocks_before_and_not_the_encoder(model, block):
    torch.manual_seed(0)
    alignment = RepresentationAlignment(CONFIG(block=block), model)
    with captured_output(model.get_submodule(block)) as hidden:
        model(torch.randn(2, 4, 3, 2, 2), torch.tensor([10.0, 500.0]), torch.randn(2, 2, 5))
    loss = alignment(hidden[0], video())
    assert -1 <= loss.item() <= 1
    loss.backward()
    assert model.embed.weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None
    assert all(value.grad is not None for value in alignment.projector.parameters())
    assert all(value.grad is None for value in alignment.vision.parameters())


def test_the_captured_output_is_what_the_module_returns_and_only_within_the_block():
    module = nn.Linear(2, 3)
    with captured_output(module) as outputs:
        expected = module(torch.ones(1, 2))
    module(torch.ones(1, 2))
    assert outputs == [expected]


def test_training_aligns_the_hidden_states_with_the_encoder():
    torch.manual_seed(0)
    alignment, hidden = RepresentationAlignment(CONFIG(), denoiser()), torch.randn(2, 8, 12)
    before = alignment(hidden, video()).item()
    optimizer = torch.optim.Adam(alignment.projector.parameters(), lr=1e-2, fused=True)
    for _ in range(60):
        optimizer.zero_grad()
        alignment(hidden, video()).backward()
        optimizer.step()
    assert alignment(hidden, video()).item() < min(before, -0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "layers.7"}, r"repa\.block 'layers\.7' is no submodule of VideoDiT"),
        ({"vision": partial(VISION, frozen=False)}, r"repa\.vision is trained"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        RepresentationAlignment(CONFIG(**changes), denoiser())
    assert len(str(caught.value).splitlines()) <= 5


def test_another_width_than_that_of_the_block_is_refused():
    with pytest.raises(UserError, match=r"repa\.width is 7, but blocks\.0 returns 12 channels"):
        RepresentationAlignment(CONFIG(width=7), denoiser())(torch.zeros(2, 8, 12), video())
