import numpy as np
import pytest
import torch

from divot_backbones.latents.block_dct import BlockDCTLatents, dct_matrix, lowest_frequencies
from divot_lightning.errors import UserError
from divot_lightning.testing.latents_conformance import LatentsConformance


class TestBlockDCT(LatentsConformance):
    def make_latents(self):
        return BlockDCTLatents(block_size=4, luma_frequencies=4, chroma_frequencies=1)


def dct_of_block(block):
    """Return the orthonormal two-dimensional DCT-II through the FFT of the mirrored signal."""
    for axis in (0, 1):
        size = block.shape[axis]
        moved = np.moveaxis(block, axis, -1)
        spectrum = np.fft.fft(np.concatenate([moved, moved[..., ::-1]], axis=-1))[..., :size]
        phase = np.exp(-0.5j * np.pi * np.arange(size) / size)
        norm = np.where(np.arange(size) == 0, np.sqrt(1 / size), np.sqrt(2 / size)) / 2
        block = np.moveaxis((spectrum * phase).real * norm, -1, axis)
    return block


def opponent_axes():
    axes = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return axes / np.sqrt((axes**2).sum(axis=1, keepdims=True))


def block_dct(luma=15, chroma=6, block=8, scale=1.0):
    return BlockDCTLatents(block, luma, chroma, scale)


@pytest.fixture
def videos():
    return torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_transform_is_orthonormal(size):
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_matrix_is_the_dct(size):
    block = np.random.default_rng(0).normal(size=(size, size))
    matrix = dct_matrix(size).double().numpy()
    np.testing.assert_allclose(matrix @ block @ matrix.T, dct_of_block(block), atol=1e-5)


def test_frequencies_are_taken_by_rising_diagonals_and_each_once():
    frequencies = lowest_frequencies(4, 16)
    assert len(set(frequencies)) == 16
    assert [row + column for row, column in frequencies] == sorted(row + column for row, column in frequencies)
    assert lowest_frequencies(4, 6) == frequencies[:6]
    assert set(frequencies[:6]) == {(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)}


def test_latents_are_the_dct_of_each_block_in_opponent_colours(videos):
    latents = block_dct(luma=10, chroma=4, scale=1.5).encode(videos)
    assert latents.shape == (2, 3, 18, 2, 3)
    expected = np.empty(latents.shape)
    for at in np.ndindex(2, 3, 2, 3):
        batch, frame, row, column = at
        block = videos[batch, frame, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].double().numpy()
        rows = []
        for axis, count in zip(opponent_axes(), (10, 4, 4), strict=True):
            spectrum = dct_of_block(np.einsum("r,ryx->yx", axis, block))
            rows += [spectrum[frequency] for frequency in lowest_frequencies(8, count)]
        expected[batch, frame, :, row, column] = 1.5 * np.array(rows)
    np.testing.assert_allclose(latents.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("block", [2, 4, 8])
def test_all_frequencies_give_the_pixels_back(videos, block):
    latents = block_dct(block**2, block**2, block, scale=0.7)
    assert latents.channels == 3 * block**2
    torch.testing.assert_close(latents.decode(latents.encode(videos), 3), videos, atol=1e-5, rtol=0)


def test_the_error_in_pixels_is_the_dropped_energy(videos):
    kept, every = block_dct(15, 6), block_dct(64, 64)
    error = (kept.decode(kept.encode(videos), 3) - videos).double().square().sum()
    dropped = every.encode(videos).double().square().sum() - kept.encode(videos).double().square().sum()
    torch.testing.assert_close(error, dropped, rtol=1e-4, atol=0)
    assert error > 100


def test_an_error_in_latents_has_its_size_in_pixels():
    latents = block_dct(scale=2.0)
    error = torch.randn(1, 2, latents.channels, 2, 2)
    pixels = latents.decode(error, 2)
    torch.testing.assert_close(pixels.norm(), error.norm() / 2.0)


def test_dropping_twice_drops_nothing_more(videos):
    latents = block_dct()
    once = latents.decode(latents.encode(videos), 3)
    torch.testing.assert_close(latents.decode(latents.encode(once), 3), once, atol=1e-5, rtol=0)


def test_the_block_transform_has_nothing_to_train_or_store():
    latents = block_dct()
    assert not list(latents.parameters())
    assert not latents.state_dict()


def test_clips_that_do_not_divide_into_blocks_are_refused():
    with pytest.raises(UserError, match="12x16 pixels do not divide into blocks of 8") as caught:
        block_dct().encode(torch.zeros(1, 1, 3, 12, 16))
    assert len(str(caught.value).splitlines()) <= 5


def test_latents_keep_the_precision_of_the_video(videos):
    latents = block_dct()
    assert latents.encode(videos.double()).dtype == torch.float64
    assert latents.decode(latents.encode(videos.bfloat16()), 3).dtype == torch.bfloat16
