"""Sine and cosine positions are finite and different from each other, also in the smallest models."""

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from divot_lightning.models.positions import sin_cos_positions, sinusoidal_embedding


@pytest.mark.parametrize("width", [8, 11, 12, 64])
def test_positions_of_a_grid_are_finite_and_distinct(width):
    positions_LD = sin_cos_positions((2, 3, 4), width)
    assert positions_LD.shape == (24, width)
    assert positions_LD.isfinite().all()
    assert len(positions_LD.unique(dim=0)) == 24


def test_a_single_frequency_is_one():
    torch.testing.assert_close(sin_cos_positions((3,), 2)[:, 0], torch.arange(3.0).sin())


@pytest.mark.parametrize("width", [4, 7, 128])
@pytest.mark.parametrize("numbers", [torch.arange(5), torch.tensor([0.0, 0.25, 999.5])])
@pytest.mark.parametrize("endpoint", [False, True])
def test_an_embedding_has_the_bits_of_diffusers(width, numbers, endpoint):
    expected = get_timestep_embedding(numbers, width, downscale_freq_shift=int(endpoint))
    assert torch.equal(sinusoidal_embedding(numbers, width, endpoint=endpoint), expected)


@pytest.mark.parametrize("width", [8, 27, 64])
def test_each_axis_has_the_same_bits_as_the_embedding_of_diffusers(width):
    each = width // 6 * 2
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float32) for count in (4, 8, 8)), indexing="ij")
    settings = {"max_period": 100, "downscale_freq_shift": int(each > 2)}
    expected = torch.cat([get_timestep_embedding(axis.flatten(), each, **settings) for axis in axes], dim=1)
    positions_LD = sin_cos_positions((4, 8, 8), width)
    assert torch.equal(positions_LD[:, : 3 * each], expected)
    assert not positions_LD[:, 3 * each :].any()
