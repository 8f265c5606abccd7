"""Video diffusion models of `diffusers` train a tokenizer end to end: the loss falls, and the tokens are used."""

import warnings
from functools import partial

import pytest
import torch
from lightning import Trainer
from tiny_models import DENOISERS, VAES
from torch.utils.data import DataLoader

from divot_backbones.denoisers.diffusers_denoiser import LTX, Latte, Wan
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.latents.video_vae import VideoVAELatents, _statistics
from divot_backbones.objectives.ddim import Epsilon, VPrediction
from divot_backbones.objectives.rectified_flow import RectifiedFlow
from divot_backbones.vision.clip import ClipVision
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.training.stages.tokenizer_pretraining import TokenizerPretraining
from divot_optimizers.adamw import AdamWOptimizer

IMAGE_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [4, 4, 4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 1.0,
}
PARTS = {
    "latte": (
        partial(ImageVAELatents, config=IMAGE_VAE, batch_size=16),
        # Twice as wide as elsewhere: at the width of 16 it takes 300 steps until it uses the tokens.
        partial(Latte, config={**DENOISERS["latte"], "num_attention_heads": 4}),
        VPrediction,
    ),
    "wan": (
        partial(VideoVAELatents, "AutoencoderKLWan", config=VAES["AutoencoderKLWan"], batch_size=2),
        partial(Wan, config=DENOISERS["wan"]),
        partial(RectifiedFlow, shift=3.0),
    ),
    "ltx": (
        partial(VideoVAELatents, "AutoencoderKLLTXVideo", config=VAES["AutoencoderKLLTXVideo"], batch_size=2),
        partial(LTX, config=DENOISERS["ltx"]),
        RectifiedFlow,
    ),
}


@pytest.fixture
def clip():
    """A dark clip and a bright one, each with some noise."""
    video = torch.randint(0, 60, (2, 16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    video[1] += 190
    return {"video": video, "key": ["dark", "bright"]}


@pytest.fixture(params=sorted(PARTS))
def stage(request, clip):
    return make_stage(*PARTS[request.param], clip, terminal_timestep_prob=0.7)


def make_stage(latents, denoiser, objective, clip, terminal_timestep_prob):
    torch.manual_seed(0)
    sizes = {"temporal_width": 6, "temporal_layers": 1, "temporal_heads": 1, "temporal_init": "random", "pool_size": 2}
    sizes |= {"spatiotemporal_width": 8, "spatiotemporal_layers": 1, "spatiotemporal_heads": 1, "num_tokens": 3}
    sizes |= {"resampler_layers": 1, "resampler_heads": 1, "resampler_head_dim": 4, "token_dim": 8}
    vision = partial(ClipVision, frozen=False, image_size=8, patch_size=4, width=8, layers=1, heads=2)
    sampling = SamplingConfig(steps=2)
    detokenizer = DetokenizerConfig(latents, denoiser, objective, sampling=sampling, size=16)
    optimizer = AdamWOptimizer(lr=1e-2, warmup_steps=1)
    stage = TokenizerPretraining(
        TokenizerConfig(vision=vision, **sizes), detokenizer, optimizer, terminal_timestep_prob
    )
    stage.configure_model()
    calibrate(stage.detokenizer.latents, to_unit_range(clip["video"]))
    return stage


@torch.no_grad()
def calibrate(latents, video):
    """Give an untrained VAE what training gives it: latents of mean 0 and deviation 1 that keep what the clips show.

    Otherwise the noise of its posterior hides the clips.
    """
    last = getattr(latents.vae, "quant_conv", None)
    last = latents.vae.encoder.conv_out.conv if last is None else last
    last.weight[latents.channels :] = 0.0
    last.bias[latents.channels :] = -10.0
    for _ in range(2):  # the second pass corrects what layers behind the last convolution make of the first
        encoded = latents.encode(video).transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)
        mean, std = encoded.mean(dim=1), encoded.std(dim=1)
        shape = (-1, *[1] * (last.weight.ndim - 1))
        scales = _scales(latents)
        last.weight[: latents.channels] /= std.view(shape)
        last.bias[: latents.channels] = (last.bias[: latents.channels] - mean * scales) / std


def _scales(latents):
    """Return by what the latents divide each channel of the VAE."""
    if isinstance(latents, ImageVAELatents):
        return torch.full((latents.channels,), 1 / latents.scale)
    return _statistics(latents.vae, latents.channels, torch.zeros(1, latents.channels, 1, 1, 1))[1].flatten()


def train(stage, batch, steps):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", enable_checkpointing=False, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(stage, DataLoader([batch] * steps, batch_size=None))


@torch.no_grad()
def losses(stage, batch, terminal_timestep_prob=0.7, seeds=3):
    """Return the loss with the clips' own tokens, and with the tokens of the other clip; the noise is the same."""
    video = to_unit_range(batch["video"])
    tokens = stage.tokenizer(video)
    results = []
    for given in (tokens, tokens.flip(0)):
        each = [
            stage.detokenizer.loss(
                video,
                given,
                terminal_timestep_prob=terminal_timestep_prob,
                generator=torch.Generator().manual_seed(seed),
            )
            for seed in range(seeds)
        ]
        results.append(torch.stack(each).mean().item())
    return results


def train_until_tokens_matter(stage, batch, factor, terminal_timestep_prob, seeds):
    """Train 100 steps at a time, 600 at most, until another clip's tokens raise the loss by a factor.

    When a network starts to use its condition depends on the last digits, which differ between processors: of four
    initial weights of Wan two did after 100 steps, one after 200 and one after 500. Without any use the factor is 1
    within 0.003, since the noise is the same.
    """
    for _ in range(6):
        train(stage, batch, 100)
        own, others = losses(stage, batch, terminal_timestep_prob, seeds)
        if others > factor * own:
            break
    return own, others


def test_the_loss_falls_and_the_tokens_of_another_clip_make_it_worse(stage, clip, tmp_path):
    before, _ = losses(stage, clip, 1.0)
    own, others = train_until_tokens_matter(stage, clip, 1.03, terminal_timestep_prob=1.0, seeds=3)
    assert own < 0.8 * before
    assert others > 1.03 * own
    save_component(stage.detokenizer, tmp_path / "detokenizer")
    loaded = load_component(tmp_path / "detokenizer", VideoDetokenizer)
    with torch.no_grad():
        tokens, null = stage.tokenizer(to_unit_range(clip["video"])), stage.tokenizer.null_tokens(16, 16)
    decoded = [
        each.eval().decode(tokens, null_tokens_QC=null, generator=torch.Generator().manual_seed(3))
        for each in (stage.detokenizer, loaded)
    ]
    assert decoded[0].shape == clip["video"].shape
    assert torch.equal(*decoded)


@pytest.mark.slow
def test_latte_trains_under_its_own_objective(clip):
    # No claim about the tokens. The noise that it predicts is nearly all there is of the noisy latents at high noise
    # levels, and at low ones it sees the clip in them, so the tokens decide little of the loss: of five initial weights
    # three raised it by 1 to 3 % with the tokens of another clip after 200 to 600 steps, two not at all.
    latents, denoiser, _ = PARTS["latte"]
    own_objective = partial(Epsilon, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    stage = make_stage(latents, denoiser, own_objective, clip, terminal_timestep_prob=0.0)
    before, _ = losses(stage, clip, 0.0, seeds=12)
    train(stage, clip, 100)
    own, _ = losses(stage, clip, 0.0, seeds=12)
    assert own < 0.3 * before
