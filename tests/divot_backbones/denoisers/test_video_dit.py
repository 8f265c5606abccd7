import numpy as np
import pytest
import torch

from divot_backbones.denoisers.video_dit import VideoDiT, _from_patches, _to_patches
from divot_lightning.errors import UserError
from divot_lightning.testing.denoiser_conformance import DenoiserConformance


def model(*, in_modulation=False, random=True, **changes):
    torch.manual_seed(0)
    settings = {"patch_frames": 2, "patch_size": 2, "width": 12, "layers": 2, "heads": 2}
    sizes = {"channels": 3, "frames": 4, "grid": (4, 2), "condition_tokens": 5, "condition_dim": 6}
    made = VideoDiT(**sizes, **{**settings, **changes}, condition_in_modulation=in_modulation)
    if random:  # as after some training: nothing is zero any more
        for value in made.parameters():
            value.data += 0.3 * torch.randn_like(value)
    return made


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 3, 4, 2, generator=generator)
    return latents, torch.arange(batch) * 100 + 5, torch.randn(batch, 5, 6, generator=generator)


class TestVideoDiT(DenoiserConformance):
    def make_denoiser(self, **sizes):
        return VideoDiT(**sizes, width=12, layers=1, heads=2, condition_in_modulation=True)


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 1, 1), (2, 2, 3), (4, 4, 6), (1, 2, 1)])
def test_patches_are_put_together_again(patch):
    latents = torch.randn(2, 4, 3, 4, 6)
    patches = _to_patches(latents, patch)
    assert patches.shape == (2, 4 * 4 * 6 // np.prod(patch), 3 * np.prod(patch))
    assert torch.equal(_from_patches(patches, patch, latents.shape), latents)


def test_a_patch_holds_one_block_of_neighbouring_latents():
    latents = torch.arange(4 * 3 * 4 * 6.0).reshape(1, 4, 3, 4, 6)
    patches = _to_patches(latents, (2, 2, 3))[0]
    blocks = [latents[0, f : f + 2, :, r : r + 2, c : c + 3].flatten() for f in (0, 2) for r in (0, 2) for c in (0, 3)]
    for patch, block in zip(patches, blocks, strict=True):
        assert set(patch.tolist()) == set(block.tolist())


@pytest.mark.parametrize("in_modulation", [False, True])
def test_the_prediction_has_the_latents_shape_and_starts_at_zero(in_modulation):
    latents, times, condition = inputs()
    prediction = model(in_modulation=in_modulation, random=False)(latents, times, condition)
    assert torch.equal(prediction, torch.zeros_like(latents))


@pytest.mark.parametrize("in_modulation", [False, True])
@pytest.mark.parametrize("changed", ["latents", "time", "condition"])
def test_each_input_changes_the_prediction_of_its_own_sample_only(in_modulation, changed):
    made, (latents, times, condition) = model(in_modulation=in_modulation), inputs()
    before = made(latents, times, condition)
    if changed == "latents":
        latents[0, 0, 0, 0, 0] += 1.0
    elif changed == "time":
        times[0] += 300
    else:
        condition[0, 3, 2] += 1.0
    after = made(latents, times, condition)
    # Every patch hears of it, and no other sample does.
    assert ((after - before)[0].abs() > 1e-6).float().mean() > 0.95
    torch.testing.assert_close(after[1], before[1])


def test_modulation_depends_on_the_order_of_condition_tokens_and_cross_attention_does_not():
    latents, times, condition = inputs()
    shuffled = condition[:, [4, 2, 0, 1, 3]]
    plain, modulated = model(), model(in_modulation=True)
    torch.testing.assert_close(plain(latents, times, shuffled), plain(latents, times, condition), atol=1e-5, rtol=1e-4)
    difference = modulated(latents, times, shuffled) - modulated(latents, times, condition)
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("in_modulation", [False, True])
def test_gradients_reach_all_parameters_after_one_step(in_modulation):
    made = model(in_modulation=in_modulation, random=False)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    latents, times, condition = inputs()
    target = torch.randn(latents.shape)
    for _ in range(2):
        optimizer.zero_grad()
        (made(latents, times, condition) - target).square().mean().backward()
        optimizer.step()
    # The first step can only move the last layer, which starts at zero.
    (made(latents, times, condition) - target).square().mean().backward()
    without = [name for name, value in made.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_is_that_of_each_head_by_itself(heads):
    query, key, value = torch.randn(2, 4, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    size = 12 // heads
    expected = torch.empty(2, 4, 12)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
        expected[..., part] = scores.softmax(dim=-1) @ value[..., part]
    block = model(heads=heads).blocks[0]
    torch.testing.assert_close(block._attend(query, key, value), expected, atol=1e-5, rtol=1e-4)


def test_positions_of_all_patches_differ():
    positions = model(random=False, width=24).position_LD.detach()
    distance = torch.cdist(positions, positions) + 10 * torch.eye(len(positions))
    assert len(positions) == 2 * 2 * 1
    assert distance.min() > 0.1


def test_time_may_be_a_fraction():
    made, (latents, _, condition) = model(), inputs()
    whole = made(latents, torch.tensor([5, 105]), condition)
    torch.testing.assert_close(made(latents, torch.tensor([5.0, 105.0]), condition), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_frames": 3}, r"4 frames of 4x2 latents do not divide into patches of 3 frames of 2x2"),
        ({"patch_size": 4}, r"4 frames of 4x2 latents do not divide into patches of 2 frames of 4x4"),
        ({"heads": 5}, "width 12 does not divide into 5 heads"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        model(**changes)
    assert len(str(caught.value).splitlines()) <= 5
