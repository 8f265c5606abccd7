"""Video VAEs of `diffusers` as latents, each at a tiny size."""

import diffusers
import pytest
import torch
from tiny_models import VAES as TINY

from divot_backbones.latents.video_vae import VIDEO_VAES, VideoVAELatents
from divot_lightning.errors import UserError
from divot_lightning.testing.latents_conformance import LatentsConformance


def build(vae, **settings):
    torch.manual_seed(0)
    return VideoVAELatents(vae, config=TINY[vae], **settings)


class _Conformance(LatentsConformance):
    vae = ""

    def make_latents(self):
        return build(self.vae, batch_size=2)


class TestWan(_Conformance):
    vae = "AutoencoderKLWan"


class TestLTX(_Conformance):
    vae = "AutoencoderKLLTXVideo"


class TestCogVideoX(_Conformance):
    vae = "AutoencoderKLCogVideoX"


class TestHunyuanVideo(_Conformance):
    vae = "AutoencoderKLHunyuanVideo"


class TestMochi(_Conformance):
    vae = "AutoencoderKLMochi"


class TestCosmos(_Conformance):
    vae = "AutoencoderKLCosmos"


def video(frames, size=16):
    return torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_every_vae_of_the_table_has_a_tiny_test():
    assert set(TINY) == set(VIDEO_VAES)


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (2, 2), (5, 2), (16, 5), (17, 5), (18, 6)])
def test_sixteen_frames_become_seventeen_and_five_latent_frames(frames, latent_frames):
    latents = build("AutoencoderKLWan")
    assert (latents.channels, latents.block_size, latents.frame_stride) == (4, 8, 4)
    assert latents.latent_frames(frames) == latent_frames
    assert latents.encode(video(frames)).shape[1] == latent_frames


def test_latents_are_those_of_the_vae_with_the_first_frame_repeated_and_normalised():
    latents, clip = build("AutoencoderKLWan"), video(16)
    filled = torch.cat([clip[:, :1], clip], dim=1).transpose(1, 2)
    mean, std = (
        torch.tensor(TINY["AutoencoderKLWan"][name]).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        posterior = latents.vae.encode(filled).latent_dist
    expected = (posterior.sample(torch.Generator().manual_seed(4)) - mean) / std
    found = latents.encode(clip, torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        pixels = latents.vae.decode(expected * std + mean).sample.transpose(1, 2)[:, 1:]
    torch.testing.assert_close(latents.decode(found, 16), pixels, atol=1e-4, rtol=1e-3)


def test_statistics_among_the_weights_are_read_after_the_weights_have_been_loaded():
    latents, clip = build("AutoencoderKLLTXVideo"), video(17)
    before = latents.encode(clip, torch.Generator().manual_seed(4))
    state = latents.state_dict()
    state["vae.latents_mean"] = torch.full((8,), 3.0)
    state["vae.latents_std"] = torch.full((8,), 2.0)
    latents.load_state_dict(state)
    after = latents.encode(clip, torch.Generator().manual_seed(4))
    torch.testing.assert_close(after, (before / 0.5 - 3.0) / 2.0 * 0.5, atol=1e-4, rtol=1e-4)


def test_statistics_per_latent_frame_follow_their_frame():
    latents, clip = build("AutoencoderKLCosmos"), video(9)
    with torch.no_grad():
        raw = latents.vae.encode(clip.transpose(1, 2)).latent_dist.sample()
    mean = torch.arange(16.0).view(4, 4)[:, :2].view(1, 4, 2, 1, 1)
    expected = (raw - mean) / (1 + mean)
    torch.testing.assert_close(latents.encode(clip).transpose(1, 2), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="do not fit 4 channels of 5 latent frames"):
        latents.encode(video(33))


def test_a_folder_is_needed_only_once(tmp_path):
    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(**TINY["AutoencoderKLWan"]).save_pretrained(tmp_path / "vae")
    latents = VideoVAELatents("AutoencoderKLWan", pretrained=str(tmp_path), subfolder="vae")
    assert latents.source == str(tmp_path / "vae")
    assert latents.init_args["config"]["z_dim"] == 4
    assert latents.init_args["pretrained"] is None


def test_a_vae_that_is_not_in_the_table_is_refused_with_those_that_are():
    with pytest.raises(UserError, match=r"vae is 'AutoencoderKLAllegro'; choose one of: .*AutoencoderKLWan"):
        VideoVAELatents("AutoencoderKLAllegro", config={})


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(UserError, match=r"latents\.batch_size is 0"):
        build("AutoencoderKLWan", batch_size=0)
