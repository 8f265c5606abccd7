"""The released tokenizer becomes a component folder: with its ViT, the recorded tokens, every name accounted for."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from divot_backbones.vision.clip import ClipVision
from divot_datamodules.decoding.video_writing import write_video
from divot_lightning.checkpoint.components import load_component
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.interop.import_detokenizer import import_detokenizer
from divot_lightning.interop.import_tokenizer import import_tokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from tests.divot_lightning.interop.test_importing import config as detokenizer_config
from tests.divot_lightning.interop.test_importing import original_vae

DATA = Path(__file__).parents[2] / "data"
VIT = {"image_size": 24, "patch_size": 4, "width": 48, "layers": 1, "heads": 4}


def config():
    return TokenizerConfig(
        vision=partial(ClipVision, **VIT),
        temporal_width=48,
        temporal_layers=2,
        temporal_heads=12,
        pool_size=3,
        spatiotemporal_width=64,
        spatiotemporal_layers=2,
        spatiotemporal_heads=8,
        num_tokens=8,
        resampler_layers=2,
        token_dim=16,
    )


def openclip_vit():
    """Random weights of a tiny ViT with OpenCLIP's names, and names of the parts that tokens do not need."""
    generator = torch.Generator().manual_seed(3)
    layer, width, hidden = "visual.transformer.resblocks.0.", 48, 192
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (37, width),
        "visual.conv1.weight": (width, 3, 4, 4),
        f"{layer}attn.in_proj_weight": (3 * width, width),
        f"{layer}attn.in_proj_bias": (3 * width,),
        f"{layer}attn.out_proj.weight": (width, width),
        f"{layer}attn.out_proj.bias": (width,),
        f"{layer}mlp.c_fc.weight": (hidden, width),
        f"{layer}mlp.c_fc.bias": (hidden,),
        f"{layer}mlp.c_proj.weight": (width, hidden),
        f"{layer}mlp.c_proj.bias": (width,),
        "visual.proj": (width, 32),
        "positional_embedding": (77, 32),
        "logit_scale": (),
    }
    norms = ("visual.ln_pre", f"{layer}ln_1", f"{layer}ln_2", "visual.ln_post", "ln_final")
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def files(tmp_path):
    """The recorded tokenizer without and with its ViT, and the ViT alone."""
    recorded, vit = load_file(DATA / "tokenizer_state.safetensors"), openclip_vit()
    torch.save(recorded, tmp_path / "without.bin")
    torch.save(vit, tmp_path / "vit.bin")
    torch.save({**recorded, **{f"vit_model.model.{name}": value for name, value in vit.items()}}, tmp_path / "with.bin")
    return tmp_path


def reference_patches(frames):
    """What OpenCLIP computes for frames of the ViT's size that are normalised already, behind the class token."""
    vit = openclip_vit()
    layer = {name.partition("resblocks.0.")[2]: value for name, value in vit.items() if "resblocks.0." in name}
    norm = torch.nn.functional.layer_norm

    tokens = torch.nn.functional.conv2d(frames, vit["visual.conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    state = torch.cat([vit["visual.class_embedding"].expand(len(tokens), 1, -1), tokens], dim=1)
    state = norm(
        state + vit["visual.positional_embedding"], (48,), vit["visual.ln_pre.weight"], vit["visual.ln_pre.bias"]
    )
    normed = norm(state, (48,), layer["ln_1.weight"], layer["ln_1.bias"])
    projected = normed @ layer["attn.in_proj_weight"].T + layer["attn.in_proj_bias"]
    query, key, value = (part.unflatten(-1, (4, 12)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    weights = (query @ key.transpose(-1, -2) / 12**0.5).softmax(dim=-1)
    read = (weights @ value).transpose(1, 2).flatten(2)
    state = state + read @ layer["attn.out_proj.weight"].T + layer["attn.out_proj.bias"]
    normed = norm(state, (48,), layer["ln_2.weight"], layer["ln_2.bias"])
    hidden = torch.nn.functional.gelu(normed @ layer["mlp.c_fc.weight"].T + layer["mlp.c_fc.bias"])
    return (state + hidden @ layer["mlp.c_proj.weight"].T + layer["mlp.c_proj.bias"])[:, 1:]


@torch.no_grad()
@pytest.mark.parametrize(("file", "vision"), [("with.bin", None), ("without.bin", "vit.bin")], ids=["one", "two"])
def test_tokenizer_gives_the_recorded_tokens_and_openclips_patches(files, file, vision):
    done = import_tokenizer(files / file, files / "run" / "tokenizer", vision and files / vision, config())
    model = load_component(files / "run" / "tokenizer", VideoTokenizer).eval()
    recorded = load_file(DATA / "tokenizer_io.safetensors")
    tokens = model.encode_patches(recorded["vit_last_hidden_state"][:, :, 1:])
    torch.testing.assert_close(tokens, recorded["tokens"], atol=1e-5, rtol=0)
    frames = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    patches = model.vision.model(pixel_values=frames).last_hidden_state[:, 1:]
    torch.testing.assert_close(patches, reference_patches(frames), atol=1e-4, rtol=1e-4)
    assert done.ignored == {
        "last norm of the ViT: only its pooled output uses it": 2,
        "projection of the ViT's pooled output": 1,
        "text encoder of CLIP": 4,
    }


def test_imported_parts_are_a_run_that_reconstructs_clips(files, capsys):
    torch.save({**load_file(DATA / "detokenizer_state.safetensors"), **original_vae()}, files / "detokenizer.bin")
    import_tokenizer(files / "with.bin", files / "run" / "tokenizer", None, config())
    import_detokenizer(files / "detokenizer.bin", files / "run" / "detokenizer", detokenizer_config(num_frames=8))
    write_video(files / "clip.mp4", torch.zeros(16, 3, 24, 24, dtype=torch.uint8).numpy(), 8.0)
    output = files / "reconstructed"
    assert main(["reconstruct", str(files / "run"), str(files / "clip.mp4"), "--output", str(output)]) == 0
    assert (output / "clip.mp4").is_file()
    assert "1 clip;" in capsys.readouterr().out


def test_the_vit_must_come_from_exactly_one_file(files):
    with pytest.raises(UserError, match=r"without\.bin does not contain the ViT"):
        import_tokenizer(files / "without.bin", files / "tokenizer", None, config())
    with pytest.raises(UserError, match=r"vit\.bin would have no effect"):
        import_tokenizer(files / "with.bin", files / "tokenizer", files / "vit.bin", config())
    assert not (files / "tokenizer").exists()


def test_a_file_of_another_size_is_refused_by_the_command(files, capsys):
    assert main(["import", "tokenizer", str(files / "with.bin"), "--to", str(files / "tokenizer")]) == 2
    shown = capsys.readouterr().err
    assert str(files / "with.bin") in shown
    assert "of another size" in shown
    assert len(shown.splitlines()) <= 5
    assert not (files / "tokenizer").exists()


def test_option_of_another_kind_is_refused(files, capsys):
    assert main(["import", "clip", str(files / "vit.bin"), "--to", str(files / "clip"), "--vision", "x"]) == 2
    assert "--vision has no effect" in capsys.readouterr().err
