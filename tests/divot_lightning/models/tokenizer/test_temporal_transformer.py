import torch

from divot_lightning.models.tokenizer.temporal_transformer import TemporalTransformer


def tiny(init="random"):
    torch.manual_seed(0)
    return TemporalTransformer(7, num_frames=5, width=12, layers=2, heads=3, output_dim=6, init=init)


def changed(model, x, frame, patch):
    """Return which (frame, patch) outputs change when one input patch feature changes."""
    other = x.clone()
    other[:, frame, patch] += 1
    return ((model(x) - model(other)).abs().amax((0, -1)) > 1e-6).tolist()


def test_each_patch_position_attends_to_all_its_frames_and_to_no_other_position():
    moved = changed(tiny(), torch.randn(2, 5, 4, 7), frame=3, patch=1)
    assert moved == [[False, True, False, False]] * 5


def test_frames_have_positions():
    model, x = tiny(), torch.randn(2, 5, 4, 7)
    order = [1, 0, 2, 3, 4]
    assert not torch.allclose(model(x[:, order]), model(x)[:, order], atol=1e-4)
    torch.nn.init.zeros_(model.frame_positions)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], atol=1e-5, rtol=1e-5)


def test_zero_init_gives_every_clip_the_same_output_at_first():
    model = tiny("zero")
    assert model(torch.randn(2, 5, 4, 7)).abs().max() == 0


def test_zero_init_is_left_within_three_steps():
    model = tiny("zero")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    x, target = torch.randn(4, 5, 4, 7), torch.randn(4, 5, 4, 6)
    for _ in range(4):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_parameter_count_of_the_paper():
    with torch.device("meta"):
        model = TemporalTransformer(1280, num_frames=5, width=768, layers=6, heads=12, output_dim=1024)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 44.3
