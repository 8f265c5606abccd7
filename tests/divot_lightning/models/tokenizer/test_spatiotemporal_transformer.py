import pytest
import torch

from divot_lightning.models.tokenizer.spatiotemporal_transformer import SpatiotemporalTransformer


def tiny():
    return SpatiotemporalTransformer(12, num_frames=5, num_positions=4, layers=2, heads=3)


def test_every_token_depends_on_every_other():
    model, x = tiny(), torch.randn(1, 5, 4, 12)
    other = x.clone()
    other[:, 2, 3] += torch.randn(12)
    assert ((model(x) - model(other)).abs().amax(-1) > 1e-7).all()


def test_tokens_are_ordered_frame_by_frame():
    model, x = tiny(), torch.randn(1, 5, 4, 12)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    other = x.clone()
    other[:, 2, 3] += torch.randn(12)
    moved = (model(x) - model(other)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [2 * 4 + 3]


@pytest.mark.parametrize(("axis", "positions"), [(1, "frame_positions"), (2, "grid_positions")])
def test_frames_and_grid_have_positions(axis, positions):
    model, x = tiny(), torch.randn(1, 5, 4, 12)
    order = [1, 0, *range(2, x.shape[axis])]

    def difference():
        shuffled = model(x.index_select(axis, torch.tensor(order))).unflatten(1, (5, 4))
        return (shuffled - model(x).unflatten(1, (5, 4)).index_select(axis, torch.tensor(order))).abs().max()

    assert difference() > 1e-3
    torch.nn.init.zeros_(getattr(model, positions))
    assert difference() < 1e-5


def test_epsilon_of_the_last_norm_is_the_released_one_which_is_not_the_blocks():
    model = tiny()
    assert model.norm.eps == 1e-5
    assert {block.attention_norm.eps for block in model.blocks} == {1e-6}


def test_parameter_count_of_the_paper():
    with torch.device("meta"):
        model = SpatiotemporalTransformer(1024, num_frames=5, num_positions=25, layers=4, heads=8)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 50.4
