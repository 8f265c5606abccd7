import torch

from divot_lightning.models.pixels import to_uint8, to_unit_range

EVERY = torch.arange(256, dtype=torch.uint8)


def test_every_stored_value_comes_back():
    assert torch.equal(to_uint8(to_unit_range(EVERY)), EVERY)


def test_the_range_is_symmetric_with_even_steps():
    unit = to_unit_range(EVERY)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit, torch.linspace(-1, 1, 256), atol=1e-6, rtol=0)


def test_shapes_are_kept():
    video = torch.randint(0, 256, (2, 3, 3, 4, 5), dtype=torch.uint8)
    assert to_unit_range(video).shape == to_uint8(to_unit_range(video)).shape == video.shape


def test_values_are_rounded_to_the_nearest():
    values = to_unit_range(EVERY).double()
    for offset in (-0.49, 0.49):
        assert torch.equal(to_uint8(values + offset / 127.5)[1:-1], EVERY[1:-1])
    assert torch.equal(to_uint8(values + 0.51 / 127.5)[:-1], EVERY[1:])


def test_values_outside_the_range_are_clipped_and_do_not_wrap_around():
    given = torch.tensor([-50.0, -1.001, 1.001, 50.0, float("inf"), float("-inf")])
    assert to_uint8(given).tolist() == [0, 0, 255, 255, 255, 0]
