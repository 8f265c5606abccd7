"""Sine and cosine positions are finite and different from each other, also in the smallest models."""

import pytest
import torch

from divot_lightning.models.positions import sin_cos_positions


@pytest.mark.parametrize("width", [8, 11, 12, 64])
def test_positions_of_a_grid_are_finite_and_distinct(width):
    positions_LD = sin_cos_positions((2, 3, 4), width)
    assert positions_LD.shape == (24, width)
    assert positions_LD.isfinite().all()
    assert len(positions_LD.unique(dim=0)) == 24


def test_a_single_frequency_is_one():
    torch.testing.assert_close(sin_cos_positions((3,), 2)[:, 0], torch.arange(3.0).sin())
