import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.latents import (
    BlockDCTLatents,
    LatentsConfig,
    VAELatents,
    build_latents,
    dct_matrix,
    lowest_frequencies,
)


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
    return BlockDCTLatents(LatentsConfig("block_dct", None, block, luma, chroma, scale))


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
    torch.testing.assert_close(latents.decode(latents.encode(videos)), videos, atol=1e-5, rtol=0)


def test_the_error_in_pixels_is_the_dropped_energy(videos):
    kept, every = block_dct(15, 6), block_dct(64, 64)
    error = (kept.decode(kept.encode(videos)) - videos).double().square().sum()
    dropped = every.encode(videos).double().square().sum() - kept.encode(videos).double().square().sum()
    torch.testing.assert_close(error, dropped, rtol=1e-4, atol=0)
    assert error > 100


def test_an_error_in_latents_has_its_size_in_pixels():
    latents = block_dct(scale=2.0)
    error = torch.randn(1, 2, latents.channels, 2, 2)
    pixels = latents.decode(error)
    torch.testing.assert_close(pixels.norm(), error.norm() / 2.0)


def test_dropping_twice_drops_nothing_more(videos):
    latents = block_dct()
    once = latents.decode(latents.encode(videos))
    torch.testing.assert_close(latents.decode(latents.encode(once)), once, atol=1e-5, rtol=0)


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
    assert latents.decode(latents.encode(videos.bfloat16())).dtype == torch.bfloat16


@pytest.fixture
def vae_folder(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 8],
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=2,
        sample_size=8,
    )
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def vae_latents(folder, scale=0.5):
    return build_latents(LatentsConfig("vae", str(folder), scale=scale))


def test_vae_latents_are_scaled_samples_of_its_posterior(vae_folder, videos):
    latents, vae, videos = vae_latents(vae_folder), AutoencoderKL.from_pretrained(vae_folder), videos[..., :8, :8]
    assert (latents.channels, latents.block_size) == (2, 2)
    with torch.no_grad():
        posterior = vae.encode(videos.flatten(0, 1)).latent_dist
    mean, spread = (value.unflatten(0, (2, 3)) for value in (posterior.mean, posterior.std))
    samples = torch.stack([latents.encode(videos) for _ in range(64)])
    assert samples.shape == (64, 2, 3, 2, 4, 4)
    # Six standard errors of a mean of 64 samples.
    assert ((samples.mean(0) - 0.5 * mean).abs() < 6 * 0.5 * spread / 64**0.5 + 1e-6).all()
    torch.testing.assert_close((samples - 0.5 * mean).div(0.5 * spread).std(), torch.tensor(1.0), atol=0.03, rtol=0)


def test_samples_of_the_vaes_posterior_are_float32_under_autocast(vae_folder, videos):
    latents = build_latents(LatentsConfig(pretrained=str(vae_folder)))
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (latents.encode(videos, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one.dtype == torch.float32
    # Of bfloat16 numbers the lower 16 bits are 0; differences of samples are those of the noise.
    assert (((one - other).view(torch.int32) & 0xFFFF) != 0).float().mean() > 0.9


def test_vae_decoding_frame_by_frame_equals_one_batch(vae_folder):
    latents, vae = vae_latents(vae_folder), AutoencoderKL.from_pretrained(vae_folder)
    given = torch.randn(2, 3, 2, 4, 4)
    with torch.no_grad():
        expected = vae.decode(given.flatten(0, 1) / 0.5).sample.unflatten(0, (2, 3))
    torch.testing.assert_close(latents.decode(given), expected, atol=1e-5, rtol=1e-4)


def test_the_generator_decides_the_sample_of_the_vae(vae_folder, videos):
    latents = vae_latents(vae_folder)
    first, second = (latents.encode(videos, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, latents.encode(videos, torch.Generator().manual_seed(5)))


def test_the_vae_is_frozen_and_stays_in_evaluation_mode(vae_folder, videos):
    latents = vae_latents(vae_folder)
    assert isinstance(latents, VAELatents)
    torch.nn.Sequential(latents).train()
    assert not any(module.training for module in latents.vae.modules())
    assert not any(value.requires_grad for value in latents.parameters())
    assert not latents.encode(videos.requires_grad_()).requires_grad


def test_vae_latents_without_a_folder_are_refused():
    with pytest.raises(UserError, match=r"latents\.pretrained must name the folder"):
        build_latents(LatentsConfig("vae"))


def test_a_folder_without_a_vae_is_named(tmp_path):
    with pytest.raises(UserError, match="no_vae_here") as caught:
        build_latents(LatentsConfig("vae", str(tmp_path / "no_vae_here")))
    assert len(str(caught.value).splitlines()) <= 5
