import pytest
import torch
from diffusers import AutoencoderKL

from divot_backbones import pretrained
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_lightning.errors import UserError
from divot_lightning.testing.latents_conformance import LatentsConformance

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 2,
    "sample_size": 8,
}


class TestImageVAE(LatentsConformance):
    def make_latents(self):
        return ImageVAELatents(config={**VAE, "shift_factor": 0.1}, batch_size=3)


@pytest.fixture
def videos():
    return torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vae_folder(tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(**VAE).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def vae_latents(folder, scale=0.5, batch_size=1):
    return ImageVAELatents(str(folder), scale=scale, batch_size=batch_size)


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
    latents = ImageVAELatents(str(vae_folder))
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
    torch.testing.assert_close(latents.decode(given, 3), expected, atol=1e-5, rtol=1e-4)


def test_the_generator_decides_the_sample_of_the_vae(vae_folder, videos):
    latents = vae_latents(vae_folder)
    first, second = (latents.encode(videos, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, latents.encode(videos, torch.Generator().manual_seed(5)))


def test_the_vae_is_frozen_and_stays_in_evaluation_mode(vae_folder, videos):
    latents = vae_latents(vae_folder)
    assert isinstance(latents, ImageVAELatents)
    torch.nn.Sequential(latents).train()
    assert not any(module.training for module in latents.vae.modules())
    assert not any(value.requires_grad for value in latents.parameters())
    assert not latents.encode(videos.requires_grad_()).requires_grad


def test_vae_latents_without_a_folder_are_refused():
    with pytest.raises(UserError, match="neither of pretrained and config given"):
        ImageVAELatents()


def test_a_folder_without_a_vae_is_named(tmp_path):
    with pytest.raises(UserError, match="no_vae_here") as caught:
        ImageVAELatents(str(tmp_path / "no_vae_here"))
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_the_batch_size_changes_neither_latents_nor_noise(vae_folder, videos, batch_size):
    one, several = (vae_latents(vae_folder, batch_size=size) for size in (1, batch_size))
    encoded = [each.encode(videos, torch.Generator().manual_seed(4)) for each in (one, several)]
    torch.testing.assert_close(*encoded, atol=1e-5, rtol=1e-4)
    decoded = [each.decode(encoded[0], 3) for each in (one, several)]
    torch.testing.assert_close(*decoded, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("device", "frames"), [("cpu", [1] * 6), ("meta", [3, 3])])
def test_without_a_batch_size_the_device_decides_how_many_frames_are_encoded_at_a_time(
    vae_folder, videos, monkeypatch, device, frames
):
    latents, at_once = vae_latents(vae_folder, batch_size=None).to(device), []
    encode, decode = latents.vae.encode, latents.vae.decode
    monkeypatch.setattr(latents.vae, "encode", lambda pixels: at_once.append(len(pixels)) or encode(pixels))
    posterior = latents.posterior(videos.to(device))
    assert posterior.shape == (2, 3, 4, 8, 12)
    assert at_once == frames
    at_once.clear()
    monkeypatch.setattr(latents.vae, "decode", lambda given: at_once.append(len(given)) or decode(given))
    assert latents.decode(posterior[:, :, :2], 3).shape == videos.shape
    assert at_once == ([2] * 3 if device == "cpu" else [3, 3])


def test_convolutions_get_the_channels_last_in_memory(vae_folder, videos):
    latents, orders = vae_latents(vae_folder), []
    for module in latents.vae.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, given: orders.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    latents.decode(latents.encode(videos), 3)
    assert len(orders) > 20
    assert all(orders)


def test_the_scale_is_the_vaes_own_unless_it_is_given_and_is_recorded(vae_folder):
    own, given = ImageVAELatents(str(vae_folder)), ImageVAELatents(str(vae_folder), scale=0.5)
    assert (own.init_args["scale"], given.init_args["scale"]) == (0.18215, 0.5)
    assert own.init_args["pretrained"] is None
    assert own.source == str(vae_folder)


def test_a_hub_repository_needs_a_revision():
    with pytest.raises(UserError, match=r"latents\.revision to a commit"):
        ImageVAELatents("someone/some-vae")


def test_another_models_folder_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    with pytest.raises(UserError, match="holds a AutoencoderKLWan, not a AutoencoderKL"):
        ImageVAELatents(str(tmp_path))


def test_of_a_hub_repository_one_revision_of_one_folder_is_downloaded(vae_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pretrained, "snapshot_download", lambda name, **settings: asked.append((name, settings)) or vae_folder.parent
    )
    latents = ImageVAELatents("someone/some-model", revision="0f1e2d", subfolder="vae")
    assert asked == [("someone/some-model", {"revision": "0f1e2d", "allow_patterns": ["vae/*"]})]
    assert latents.source == str(vae_folder)


def test_a_hub_repository_that_cannot_be_read_is_named(monkeypatch):
    def fail(name, **settings):
        raise OSError("no route")

    monkeypatch.setattr(pretrained, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"'someone/some-model' at revision '0f1e2d' cannot be read: no route"):
        ImageVAELatents("someone/some-model", revision="0f1e2d")
