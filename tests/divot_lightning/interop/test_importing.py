"""Checkpoints of other projects become folders: same outputs, every name accounted for, nothing half-written."""

import contextlib
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from divot_backbones.denoisers.dynamicrafter.denoiser import DynamiCrafter
from divot_backbones.denoisers.dynamicrafter.model import DynamiCrafterUNet
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.objectives.ddim import VPrediction
from divot_lightning.checkpoint.components import load_component
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.interop.import_clip import import_clip
from divot_lightning.interop.import_detokenizer import (
    detokenizer_table,
    import_detokenizer,
    import_dynamicrafter,
    released_detokenizer,
)
from divot_lightning.interop.openclip_keys import VIT_H_14
from divot_lightning.interop.released_files import read_released
from divot_lightning.interop.released_keys import KeyTable, from_released
from divot_lightning.models.detokenizer.config import ConditionResamplerConfig, DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer

DATA = Path(__file__).parents[2] / "data"
UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_levels": (0, 1),
    "attention_head_dim": 16,
    "cross_attention_dim": 48,
}
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
    "scaling_factor": 0.18215,
}


def config(num_frames=4):
    return DetokenizerConfig(
        latents=partial(ImageVAELatents, config=dict(VAE)),
        denoiser=partial(DynamiCrafter, config=dict(UNET)),
        objective=VPrediction,
        condition_resampler=ConditionResamplerConfig(90, 64, 2, 16, 64, 48),
        sampling=SamplingConfig(steps=2),
        num_frames=num_frames,
        size=16,
        num_tokens=8,
        token_dim=16,
    )


class OriginalBlock(nn.Module):
    """Two convolutions with the names of the original VAE."""

    def __init__(self, channels, out):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, channels), nn.Conv2d(channels, out, 3)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)


class OriginalHalf(nn.Module):
    """Encoder or decoder with the names and shapes of the original VAE; it is never run."""

    def __init__(self, way, ends, inner, blocks, resampled):
        super().__init__()
        first, last = inner
        self.conv_in, self.conv_out = nn.Conv2d(ends[0], first, 3), nn.Conv2d(last, ends[1], 3)
        self.norm_out = nn.GroupNorm(4, last)
        deepest = nn.Module()
        deepest.block_1, deepest.block_2 = OriginalBlock(16, 16), OriginalBlock(16, 16)
        deepest.attn_1 = nn.Module()
        deepest.attn_1.norm = nn.GroupNorm(4, 16)
        for name in ("q", "k", "v", "proj_out"):
            setattr(deepest.attn_1, name, nn.Conv2d(16, 16, 1))
        self.mid = deepest
        levels = nn.ModuleList()
        for level, sizes in enumerate(blocks):
            owner = nn.Module()
            owner.block = nn.ModuleList(OriginalBlock(*each) for each in sizes)
            if level == resampled:
                sampler = nn.Module()
                sampler.conv = nn.Conv2d(sizes[-1][1], sizes[-1][1], 3)
                setattr(owner, f"{way}sample", sampler)
            levels.append(owner)
        setattr(self, way, levels)


def original_vae():
    torch.manual_seed(5)
    vae = nn.Module()
    vae.encoder = OriginalHalf("down", (3, 8), (8, 16), [[(8, 8)], [(8, 16)]], 0)
    vae.decoder = OriginalHalf("up", (4, 3), (16, 8), [[(16, 8), (8, 8)], [(16, 16), (16, 16)]], 1)
    vae.quant_conv, vae.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)
    return {f"first_stage_model.{name}": value for name, value in vae.state_dict().items()}


@pytest.fixture(scope="module")
def released():
    """The recorded U-Net and resampler with a VAE, and buffers that a diffusion model keeps beside them."""
    return {
        **load_file(DATA / "detokenizer_state.safetensors"),
        **original_vae(),
        "betas": torch.zeros(1000),
        "sqrt_alphas_cumprod": torch.zeros(1000),
    }


@pytest.fixture(scope="module")
def released_file(released, tmp_path_factory):
    file = tmp_path_factory.mktemp("released") / "Divot_detokenizer_stage1.bin"
    torch.save(released, file)
    return file


@torch.no_grad()
def test_detokenizer_gives_the_recorded_outputs(released_file, tmp_path):
    done = import_detokenizer(released_file, tmp_path / "run" / "detokenizer", config())
    assert done.ignored == {"noise schedule, which is computed from its settings": 2}
    model = load_component(tmp_path / "run" / "detokenizer", VideoDetokenizer).eval()
    recorded = load_file(DATA / "detokenizer_io.safetensors")
    condition = model.condition(recorded["tokens"])
    torch.testing.assert_close(condition, recorded["condition"], atol=1e-5, rtol=0)
    latents = recorded["noisy_latents_bcthw"].transpose(1, 2)
    # The first clip was recorded with the frame stride that the de-tokenizer has.
    prediction = model.denoiser(latents, recorded["timesteps"], condition)[0].transpose(0, 1)
    torch.testing.assert_close(prediction, recorded["prediction_bcthw"][0], atol=1e-4, rtol=0)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["detokenizer"]


def test_vae_is_converted_as_diffusers_does(released, released_file, tmp_path):
    import_detokenizer(released_file, tmp_path / "detokenizer", config())
    stored = load_file(tmp_path / "detokenizer" / "model.safetensors")
    prefix = "latents.vae."
    converted = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    expected = convert_ldm_vae_checkpoint(dict(released), {**VAE, "up_block_types": VAE["up_block_types"]})
    assert converted.keys() == expected.keys()
    assert all(torch.equal(value.flatten(), expected[name].flatten()) for name, value in converted.items())
    AutoencoderKL(**VAE).load_state_dict(converted)


def test_every_weight_of_the_released_size_has_a_released_name():
    with init_empty_weights():
        model = VideoDetokenizer(released_detokenizer())
    numbers = sum(parameter.numel() for parameter in model.denoiser.parameters())
    assert round(numbers / 1e5) == 14388
    assert model.config.denoiser.init_args["gradient_checkpointing"]
    assert model.latents.scale == 0.18215
    table = detokenizer_table(model)
    back = KeyTable(table.part, {ours: theirs for theirs, ours in table.ours_by_released.items()})
    released = from_released(model.state_dict(), back)
    assert len(released) == len(model.state_dict())
    assert from_released(released, table).keys() == model.state_dict().keys()
    # From the released architecture: 12 blocks down, 3 in the middle, 12 up; the lowest level has no attention.
    assert {
        "diffusion_model.fps_embedding.2.bias": (1280,),
        "diffusion_model.init_attn.0.proj_in.weight": (512, 320),
        "diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "diffusion_model.input_blocks.8.2.transformer_blocks.0.attn2.to_k.weight": (1280, 1280),
        "diffusion_model.input_blocks.11.0.temopral_conv.conv4.3.weight": (1280, 1280, 3, 1, 1),
        "diffusion_model.middle_block.1.transformer_blocks.0.attn2.alpha": (1,),
        "diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "diffusion_model.output_blocks.5.3.conv.weight": (1280, 1280, 3, 3),
        "diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_v_ip.weight": (320, 1024),
        "first_stage_model.decoder.up.3.block.0.norm1.weight": (512,),
        "image_proj_model.latents": (1, 125, 1024),
    }.items() <= {name: tuple(value.shape) for name, value in released.items()}.items()
    assert not any(name.startswith("diffusion_model.input_blocks.10.1") for name in released)


def damaged(content, tmp_path):
    file = tmp_path / "damaged.bin"
    torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("image_proj_model.norm_out.bias"), "missing: resampler.output_norm.bias"),
        (
            lambda weights: weights.update({"diffusion_model.out.3.bias": torch.zeros(4)}),
            r"'diffusion_model.out.3.bias'",
        ),
        (
            lambda weights: weights.update({"diffusion_model.out.2.bias": torch.zeros(5)}),
            r"of another size: denoiser.model.conv_out.bias \(5,\) instead of \(4,\)",
        ),
    ],
    ids=["missing", "unknown", "size"],
)
def test_files_that_do_not_fit_are_refused_by_name_and_leave_nothing(released, change, message, tmp_path):
    weights = dict(released)
    change(weights)
    file = damaged(weights, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        import_detokenizer(file, tmp_path / "detokenizer", config())
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.bin"]


def test_a_cut_off_file_and_a_file_with_code_are_refused(released_file, tmp_path):
    content = released_file.read_bytes()
    cut = tmp_path / "cut.bin"
    cut.write_bytes(content[: len(content) // 2])
    code = damaged({"weights": Path("x")}, tmp_path)
    empty = tmp_path / "empty.bin"
    torch.save({"epoch": 3}, empty)
    for file, message in ((cut, "cut off"), (code, "more than weights"), (empty, "no weights by name")):
        with pytest.raises(UserError, match=message) as caught:
            import_detokenizer(file, tmp_path / "detokenizer", config())
        assert str(file) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 5
    assert not (tmp_path / "detokenizer").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [False, True], ids=["before torch 1.6", "zip"])
def test_whatever_damage_a_file_has_is_told(tmp_path, zipped):
    file, drawn = tmp_path / "damaged.bin", random.Random(0)
    torch.save({"a": torch.zeros(3), "b": {"c": 1}}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    for _ in range(150):
        changed = bytearray(content[: drawn.choice([len(content), drawn.randrange(len(content))])])
        for _ in range(3):
            changed[drawn.randrange(len(changed))] = drawn.randrange(256)
        file.write_bytes(changed)
        with contextlib.suppress(UserError):
            read_released(file)


def test_an_error_while_writing_leaves_nothing(released_file, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("divot_lightning.interop.folders.save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        import_detokenizer(released_file, tmp_path / "run" / "detokenizer", config())
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is a file where a folder is needed"):
        import_detokenizer(released_file, tmp_path / "file" / "detokenizer", config())


def test_an_existing_folder_is_not_overwritten(released_file, tmp_path):
    (tmp_path / "detokenizer").mkdir()
    with pytest.raises(UserError, match="nothing is overwritten"):
        import_detokenizer(released_file, tmp_path / "detokenizer", config())


@torch.no_grad()
def test_dynamicrafter_loses_its_image_input_and_nothing_else(released, tmp_path):
    weights = {name if name.startswith("first") else f"model.{name}": value for name, value in released.items()}
    weights = {name.replace("fps_embedding", "framestride_embed"): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("model.image_proj_model.")}
    weights |= {"betas": weights.pop("model.betas"), "scale_arr": weights.pop("model.sqrt_alphas_cumprod")}
    first = "model.diffusion_model.input_blocks.0.0.weight"
    weights[first] = torch.cat([weights[first], torch.ones_like(weights[first])], dim=1)
    weights |= {"cond_stage_model.model.x": torch.zeros(1), "embedder.model.x": torch.zeros(1)}
    weights["image_proj_model.latents"] = torch.zeros(1)
    file = tmp_path / "model.ckpt"
    torch.save({"epoch": 3, "module": {f"_forward_module.{name}": value for name, value in weights.items()}}, file)
    done = import_dynamicrafter(file, tmp_path / "dynamicrafter", UNET, VAE)
    assert sum(done.ignored.values()) == 5
    unet = DynamiCrafterUNet.from_pretrained(tmp_path / "dynamicrafter" / "unet").eval()
    recorded = load_file(DATA / "detokenizer_io.safetensors")
    given = (recorded["noisy_latents_bcthw"], recorded["timesteps"], recorded["condition"], recorded["fs"])
    torch.testing.assert_close(unet(*given).sample, recorded["prediction_bcthw"], atol=1e-4, rtol=0)
    vae = AutoencoderKL.from_pretrained(tmp_path / "dynamicrafter" / "vae")
    assert torch.equal(vae.quant_conv.weight, weights["first_stage_model.quant_conv.weight"])


class OriginalLayer(nn.Module):
    """One layer of OpenCLIP's transformer, written from the paper: pre-norm, joint projections, exact GELU."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))

    def forward(self, state, mask=None):
        normed = self.ln_1(state)
        state = state + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return state + self.mlp(self.ln_2(state))


class OriginalCLIP(nn.Module):
    """A tiny OpenCLIP model with its names."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Module()
        self.visual.class_embedding = nn.Parameter(torch.randn(16))
        self.visual.positional_embedding = nn.Parameter(torch.randn(5, 16))
        self.visual.proj = nn.Parameter(torch.randn(16, 12))
        self.visual.conv1 = nn.Conv2d(3, 16, 4, stride=4, bias=False)
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(16), nn.LayerNorm(16)
        self.visual.transformer, self.transformer = nn.Module(), nn.Module()
        self.visual.transformer.resblocks = nn.ModuleList(OriginalLayer(16, 2, 32) for _ in range(2))
        self.transformer.resblocks = nn.ModuleList(OriginalLayer(8, 2, 16) for _ in range(3))
        self.token_embedding = nn.Embedding(20, 8)
        self.positional_embedding = nn.Parameter(torch.randn(6, 8))
        self.ln_final = nn.LayerNorm(8)
        self.text_projection = nn.Parameter(torch.randn(8, 12))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("attn_mask", torch.full((6, 6), float("-inf")).triu(1))

    def patches(self, pixels):
        tokens = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.expand(len(tokens), 1, -1)
        state = self.visual.ln_pre(torch.cat([first, tokens], dim=1) + self.visual.positional_embedding)
        for layer in self.visual.transformer.resblocks:
            state = layer(state)
        return state

    def image(self, pixels):
        return self.visual.ln_post(self.patches(pixels)[:, 0]) @ self.visual.proj

    def text(self, ids):
        state = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for layer in self.transformer.resblocks:
            state = layer(state, self.attn_mask[: ids.shape[1], : ids.shape[1]])
        return self.ln_final(state)[:, -1] @ self.text_projection


CLIP = {
    "projection_dim": 12,
    "text_config": {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 6,
        "hidden_act": "gelu",
        "eos_token_id": 19,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "hidden_act": "gelu",
    },
}


@torch.no_grad()
def test_clip_computes_as_openclip(tmp_path):
    torch.manual_seed(7)
    original = OriginalCLIP().eval()
    save_file(original.state_dict(), tmp_path / "open_clip.safetensors")
    done = import_clip(tmp_path / "open_clip.safetensors", tmp_path / "clip", CLIP)
    assert done.ignored == {"the causal mask, which transformers computes": 1}
    clip = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    pixels, ids = torch.randn(2, 3, 8, 8), torch.tensor([[3, 5, 19], [7, 1, 19]])
    both = clip(input_ids=ids, pixel_values=pixels)
    for actual, expected in ((both.image_embeds, original.image(pixels)), (both.text_embeds, original.text(ids))):
        torch.testing.assert_close(actual, nn.functional.normalize(expected), atol=1e-5, rtol=1e-4)
    vision = CLIPVisionModel.from_pretrained(tmp_path / "clip").eval()
    torch.testing.assert_close(vision(pixels).last_hidden_state, original.patches(pixels), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.logit_scale, torch.tensor(2.0))


def test_released_clip_has_the_sizes_of_vit_h():
    with init_empty_weights():
        clip = CLIPModel(CLIPConfig(**VIT_H_14))
    # 986.1 M parameters, as OpenCLIP's model card says.
    assert round(sum(parameter.numel() for parameter in clip.parameters()) / 1e5) == 9861


def test_command_refuses_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["import", "detokenizer", str(tmp_path / "no.bin"), "--to", str(tmp_path / "run")]) == 2
    assert f"there is no file {tmp_path / 'no.bin'}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_command_refuses_a_kind_that_it_does_not_know(capsys):
    assert main(["import", "vae", "x", "--to", "y"]) == 2
    assert "detokenizer" in capsys.readouterr().err
