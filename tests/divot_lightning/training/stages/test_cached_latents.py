"""A de-tokenizer trains on cached tokens and latents as on videos, without its VAE and without the tokenizer."""

from functools import partial

import pytest
import torch
from lightning import Trainer

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.latents.video_vae import VideoVAELatents
from divot_backbones.objectives.ddim import VPrediction
from divot_backbones.vision.clip import ClipVision
from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_datamodules.video_text import VideoTextData
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import part_sha256, save_component
from divot_lightning.checkpoint.run_components import record_components
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.inference.feature_encoding import encode_shards
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.testing.toy_shards import make_toy_shards
from divot_lightning.training.stages.detokenizer_adaptation import DetokenizerAdaptation
from divot_lightning.training.stages.detokenizer_refinement import DetokenizerRefinement
from divot_optimizers.adamw import AdamWOptimizer
from tests.divot_backbones.tiny_models import VAES
from tests.helpers.tiny_models import SIZES

IMAGE_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [4, 4, 4],
    "norm_num_groups": 2,
}
LATENTS = {
    "image_vae": (partial(ImageVAELatents, config=IMAGE_VAE, batch_size=3), 4),
    "video_vae": (partial(VideoVAELatents, "AutoencoderKLWan", config=VAES["AutoencoderKLWan"]), 5),
}
CLIP = ClipConfig(32, 32)


def write_run(folder, latents, patch_frames, **settings):
    torch.manual_seed(0)
    vision = partial(ClipVision, image_size=32, patch_size=16, width=8, layers=1, heads=2, frozen=False)
    save_component(VideoTokenizer(TokenizerConfig(vision=vision, **SIZES)), folder / "tokenizer")
    denoiser = partial(VideoDiT, width=8, layers=1, heads=2, patch_frames=patch_frames)
    config = DetokenizerConfig(partial(latents, **settings), denoiser, VPrediction, size=32, num_tokens=3, token_dim=4)
    save_component(VideoDetokenizer(config), folder / "detokenizer")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_toy_shards(tmp_path_factory.mktemp("toy"), train=6, validation=4, held_out=4)


OPTIMIZER = AdamWOptimizer(lr=3e-3, warmup_steps=1)


def refine(run, shards, validation, workers=0):
    torch.manual_seed(0)
    stage = DetokenizerRefinement(str(run), OPTIMIZER, condition_dropout=0.3)
    return train(stage, shards, validation, workers)


def write_llm(folder, run):
    """Write a run with a video LLM on the tokenizer of another run."""
    torch.manual_seed(1)
    folder.mkdir()
    toy_text_tokenizer().save_pretrained(folder / "text")
    model = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VideoLLMConfig(
        language_model_config={**model, "intermediate_size": 16},
        text_tokenizer=str(folder / "text"),
        num_queries=3,
        feature_dim=4,
    )
    save_component(VideoLLM(config, GMMHead), folder / "video_llm")
    record_components(folder, {"tokenizer": run / "tokenizer"})
    return folder


def adapt(llm, run, shards, validation, workers=0, **settings):
    torch.manual_seed(0)
    stage = DetokenizerAdaptation(str(llm), str(run), OPTIMIZER, condition_dropout=0.3, **settings)
    seen = train(stage, shards, validation, workers, tasks={"generate": 1.0})
    return *seen, stage.detokenizer.state_dict()


def train(stage, shards, validation, workers, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=3, enable_checkpointing=False, num_sanity_val_steps=0, **quiet)
    data = VideoTextData(str(shards), str(validation), batch_size=2, clip=CLIP, num_workers=workers, **settings)
    keys, losses, step = [], [], stage.training_step

    def recorded(batch, batch_idx):
        loss = step(batch, batch_idx)
        keys.append(batch["key"])
        losses.append(loss.item())
        return loss

    stage.training_step = recorded
    trainer.fit(stage, data)
    (found,) = trainer.validate(stage, data, verbose=False)
    return keys, losses, found


@pytest.mark.parametrize("kind", LATENTS)
def test_refinement_on_cached_latents_is_that_on_videos(kind, videos, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", *LATENTS[kind])
    for part in ("train", "validation"):
        encode_shards(run, videos / part, tmp_path / part, detokenizer=run, batch_size=4)
    expected = refine(run, videos / "train", videos / "validation")
    for cls in (ImageVAELatents, VideoVAELatents):
        monkeypatch.setattr(cls, "posterior", None)
    for workers in (0, 1):
        keys, *losses = refine(run, tmp_path / "train", tmp_path / "validation", workers)
        assert keys == expected[0]
        # Tokens are encoded in another batch size, so they are rounded otherwise, which Adam enlarges in later steps.
        torch.testing.assert_close(losses, list(expected[1:]), rtol=1e-3, atol=1e-5)
        assert losses[0][0] == pytest.approx(expected[1][0], rel=1e-5)
    untrained = write_run(tmp_path / "other", *LATENTS[kind])
    assert part_sha256(untrained / "detokenizer", "latents") == part_sha256(run / "detokenizer", "latents")


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("settings", [{}, {"candidates": 4, "nearest_per": "token"}], ids=["paper", "nearest"])
def test_adaptation_on_cached_latents_has_the_bits_of_that_on_videos(kind, settings, videos, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", *LATENTS[kind])
    llm = write_llm(tmp_path / "llm", run)
    for part in ("train", "validation"):
        encode_shards(run, videos / part, tmp_path / part, detokenizer=run, batch_size=4)
    *expected, weights = adapt(llm, run, videos / "train", videos / "validation", **settings)
    for cls in (ImageVAELatents, VideoVAELatents):
        monkeypatch.setattr(cls, "posterior", None)
    for workers in (0, 1):
        *found, trained = adapt(llm, run, tmp_path / "train", tmp_path / "validation", workers, **settings)
        assert found == expected
        assert all(torch.equal(trained[name], value) for name, value in weights.items())


def test_adaptation_refuses_features_without_latents(videos, tmp_path):
    run = write_run(tmp_path / "run", *LATENTS["image_vae"])
    encode_shards(run, videos / "train", tmp_path / "plain")
    with pytest.raises(UserError, match=r"plain holds cached features, but(.|\n)*--detokenizer"):
        adapt(write_llm(tmp_path / "llm", run), run, tmp_path / "plain", tmp_path / "plain")
    (tmp_path / "plain" / "index.json").unlink()  # without it, the first batch tells
    with pytest.raises(UserError, match=r"hold cached features alone(.|\n)*--detokenizer"):
        adapt(tmp_path / "llm", run, tmp_path / "plain", tmp_path / "plain")


def test_latents_of_other_weights_and_features_without_latents_are_refused(videos, tmp_path, capsys):
    run = write_run(tmp_path / "run", *LATENTS["image_vae"])
    words = ["data", "encode", "--tokenizer", str(run), "--input", str(videos / "train")]
    assert main([*words, "--detokenizer", str(run), "--output", str(tmp_path / "cached")]) == 0
    assert "features and latents of 6 samples" in capsys.readouterr().out
    assert main([*words, "--detokenizer", str(run), "--output", str(tmp_path / "other"), "--frames", "8"]) == 2
    assert "takes 16 of 32 x 32\nset --frames and --size" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "cached")]) == 2
    assert "shards of other settings: latents_sha256" in capsys.readouterr().err
    batched = write_run(tmp_path / "batched", *LATENTS["image_vae"], batch_size=8)
    refine(batched, tmp_path / "cached", tmp_path / "cached")
    scaled = write_run(tmp_path / "scaled", *LATENTS["image_vae"], scale=0.5)
    with pytest.raises(UserError, match=r"come from other weights or settings(.|\n)*--detokenizer"):
        refine(scaled, tmp_path / "cached", tmp_path / "cached")
    assert main([*words, "--output", str(tmp_path / "plain")]) == 0
    with pytest.raises(UserError, match=r"holds cached features, but(.|\n)*--detokenizer"):
        refine(run, tmp_path / "plain", tmp_path / "plain")
