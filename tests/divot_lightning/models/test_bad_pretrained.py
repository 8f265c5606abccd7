"""Pretrained folders that cannot be used, for every kind of part: a short refusal that names the setting, and no more.

Each kind is broken in each way. A model with a few random weights would train without a word, so a folder that lacks a
weight counts as broken too.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, WanTransformer3DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from divot_backbones.denoisers.diffusers_denoiser import Wan
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.latents.video_vae import VideoVAELatents
from divot_backbones.vision.clip import ClipVision
from divot_backbones.vision.transformers_vision import TransformersVision
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.building import build_language_model
from divot_lightning.models.video_llm.config import VideoLLMConfig

VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
VIT |= {"image_size": 8, "patch_size": 4}
IMAGE_VAE = {"block_out_channels": [4], "norm_num_groups": 2}
VIDEO_VAE = {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]}
VIDEO_VAE |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 16, "num_layers": 1}
WAN |= {"rope_max_seq_len": 32, "in_channels": 4, "out_channels": 4, "text_dim": 8}
LLM = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_language_model(folder):
    tokenizer = word_level_tokenizer(["a red circle"])
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(**LLM, vocab_size=len(tokenizer))).save_pretrained(folder)


def build_llm(pretrained, revision=None):
    build_language_model(VideoLLMConfig(language_model=pretrained, revision=revision), None)


KINDS = {
    "clip": (
        lambda folder: CLIPVisionModel(CLIPVisionConfig(**VIT)).save_pretrained(folder),
        ClipVision,
        "hidden_size",
    ),
    "transformers": (
        lambda folder: SiglipVisionModel(SiglipVisionConfig(**VIT)).save_pretrained(folder),
        TransformersVision,
        "hidden_size",
    ),
    "image_vae": (
        lambda folder: AutoencoderKL(**IMAGE_VAE).save_pretrained(folder),
        ImageVAELatents,
        "latent_channels",
    ),
    "video_vae": (
        lambda folder: AutoencoderKLWan(**VIDEO_VAE).save_pretrained(folder),
        partial(VideoVAELatents, "AutoencoderKLWan"),
        "base_dim",
    ),
    "wan": (
        lambda folder: WanTransformer3DModel(**WAN).save_pretrained(folder),
        partial(Wan, 4, 5, (4, 4), 3, 8),
        "ffn_dim",
    ),
    "language_model": (save_language_model, build_llm, "intermediate_size"),
}
"""By kind: write a folder that works, build the part from one, and a size in the config."""


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def write_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}))


def weights_of(folder):
    return next(folder.glob("*.safetensors"))


def wrong_class(folder, size):
    foreign_keys(folder, size)
    write_config(folder, model_type="bert", _class_name="UNet2DModel", architectures=["BertModel"])


def no_config(folder, size):
    (folder / "config.json").unlink()


def no_weights(folder, size):
    weights_of(folder).unlink()


def half_a_download(folder, size):
    whole = weights_of(folder).read_bytes()
    weights_of(folder).write_bytes(whole[: len(whole) // 2])


def one_weight_short(folder, size):
    weights = load_file(weights_of(folder))
    del weights[sorted(weights)[-1]]
    save_file(weights, weights_of(folder), {"format": "pt"})


def foreign_keys(folder, size):
    weights = {f"foreign.{name}": value for name, value in load_file(weights_of(folder)).items()}
    save_file(weights, weights_of(folder), {"format": "pt"})


def other_sizes(folder, size):
    write_config(folder, **{size: 2 * config_of(folder).get(size, 4)})


class Evil:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def pickle_with_code(folder, size):
    name = weights_of(folder).name
    weights_of(folder).unlink()
    for stem in ("pytorch_model", name.removesuffix(".safetensors")):
        torch.save(Evil(folder.parent / "was-run"), folder / f"{stem}.bin")


FAULTS = [
    wrong_class,
    no_config,
    no_weights,
    half_a_download,
    one_weight_short,
    foreign_keys,
    other_sizes,
    pickle_with_code,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_broken_is_refused_in_five_lines(kind, fault, tmp_path):
    save, build, size = KINDS[kind]
    folder = tmp_path / "model"
    save(folder)
    build(pretrained=str(folder))  # it works before it is broken
    fault(folder, size)
    with pytest.raises(UserError) as refused:
        build(pretrained=str(folder))
    message = str(refused.value)
    assert str(folder) in message
    assert len(message.splitlines()) <= 5
    assert all(len(line) < 400 for line in message.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("revision", [None, "0123456789012345678901234567890123456789"])
def test_a_hub_id_without_a_network_is_refused_in_five_lines(kind, revision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing") as refused:
        KINDS[kind][1](pretrained="nobody/nothing", revision=revision)
    assert len(str(refused.value).splitlines()) <= 5
    assert list(tmp_path.iterdir()) == []
