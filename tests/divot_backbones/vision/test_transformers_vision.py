"""Vision models of transformers, against the same models called by hand."""

import functools
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, SiglipConfig, SiglipModel

from divot_backbones.vision.families import FAMILIES, IMAGENET_MEAN, IMAGENET_STD
from divot_backbones.vision.pixels import normalize, resize
from divot_backbones.vision.transformers_vision import TransformersVision
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.errors import UserError
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.preflight.shapes import without_weights
from tests.divot_backbones.vision.tiny_models import TINY

CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
    "vit": "ViTModel",
    "vjepa2": "VJEPA2Model",
}
NUM_PREFIX_TOKENS = {"dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 3, "vit": 1}
EVERY_MODEL = pytest.mark.parametrize("model_type", sorted(CLASSES))


def config_of(model_type, **changes):
    return {"model_type": model_type, **TINY[model_type], **changes}


def model_of(model_type, seed=0):
    """transformers' own model, with random weights that are not zero anywhere."""
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES[model_type])(AutoConfig.for_model(**config_of(model_type)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def frames(size=16, clips=2, count=4):
    return torch.rand(clips, count, 3, size, size) * 2 - 1


def patches_by_hand(image_3HW, side):
    """Cut an image into patches, pixel by pixel, each with its channels last."""
    rows, columns = image_3HW.shape[1] // side, image_3HW.shape[2] // side
    patches = []
    for row in range(rows):
        for column in range(columns):
            pixels = [image_3HW[:, row * side + y, column * side + x] for y in range(side) for x in range(side)]
            patches.append(torch.cat(pixels))
    return torch.stack(patches)


def features_by_hand(model, model_type, clip_F3HW):
    """The patch features of one clip, (T, P, C), from the model called as transformers documents it."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if "dino" in model_type or "vjepa" in model_type else ([0.5] * 3,) * 2
    unit = (clip_F3HW + 1) / 2
    pixels = (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    if model_type == "vjepa2":
        return model.get_vision_features(pixels[None])[0].unflatten(0, (-1, 16))
    if model_type == "siglip2_vision_model":
        patches = torch.stack([patches_by_hand(image, 4) for image in pixels])
        mask, shapes = torch.ones(patches.shape[:2], dtype=torch.long), torch.full((len(patches), 2), 4)
        return model(patches, mask, shapes).last_hidden_state
    each = [model(pixel_values=image[None]).last_hidden_state[0] for image in pixels]
    return torch.stack(each)[:, NUM_PREFIX_TOKENS.get(model_type, 0) :]


def test_every_model_of_the_table_is_tested():
    assert {model_type: family.model for model_type, family in FAMILIES.items()} == CLASSES


@EVERY_MODEL
@torch.no_grad()
def test_features_are_those_of_the_model_called_by_hand(model_type, tmp_path):
    model = model_of(model_type)
    model.save_pretrained(tmp_path)
    encoder, video = TransformersVision(pretrained=str(tmp_path)), frames()
    expected = torch.stack([features_by_hand(model, model_type, clip) for clip in video])
    assert encoder(video).shape == expected.shape
    torch.testing.assert_close(encoder(video), expected, atol=1e-5, rtol=1e-5)


@EVERY_MODEL
def test_settings_and_weights_are_enough_without_the_folder(model_type, tmp_path):
    model_of(model_type).save_pretrained(tmp_path / "weights")
    encoder, video = TransformersVision(pretrained=str(tmp_path / "weights")), frames()
    assert encoder.source == str(tmp_path / "weights")
    shutil.rmtree(tmp_path / "weights")
    assert str(tmp_path) not in json.dumps(encoder.init_args)
    twin = TransformersVision(**json.loads(json.dumps(encoder.init_args)))
    assert twin.source is None
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(video), encoder(video))


@EVERY_MODEL
def test_a_weight_that_the_folder_lacks_is_named(model_type, tmp_path):
    model_of(model_type).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if ".1." in name and name.endswith("weight") and "predictor" not in name)
    layer, _, _ = lost.partition(".1.")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=f"lacks 1 weights of a {CLASSES[model_type]}, such as '.*{layer[-5:]}s?\\.1\\."
    ):
        TransformersVision(pretrained=str(tmp_path))


@pytest.mark.parametrize("model_type", ["siglip_vision_model", "vit", "vjepa2"])
def test_what_patch_features_do_not_use_may_be_missing(model_type, tmp_path):
    model_of(model_type).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    unused = ("head.", "pooler.", "predictor.")
    kept = {name: value for name, value in weights.items() if not any(part in name for part in unused)}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder = TransformersVision(pretrained=str(tmp_path))
    assert not [name for name in encoder.state_dict() if any(part in name for part in unused)]


def test_vision_part_of_a_whole_siglip_model_is_loaded(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    whole = SiglipModel(SiglipConfig(vision_config=TINY["siglip_vision_model"], text_config={**text, "vocab_size": 9}))
    whole.save_pretrained(tmp_path)
    encoder = TransformersVision(pretrained=str(tmp_path))
    theirs = {name.removeprefix("vision_model."): value for name, value in whole.state_dict().items()}
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.model.state_dict().items())


def test_half_precision_weights_are_loaded_and_rebuilt_as_float32(tmp_path):
    model_of("vit").half().save_pretrained(tmp_path)
    encoder = TransformersVision(pretrained=str(tmp_path))
    twin = TransformersVision(**encoder.init_args)
    assert {p.dtype for part in (encoder, twin) for p in part.parameters()} == {torch.float32}


def test_keys_of_the_folder_that_do_not_describe_the_network_are_not_stored(tmp_path):
    model_of("vit").save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    told |= {"id2label": {"0": "tench"}, "label2id": {"tench": 0}, "of_an_older_version": 3}
    (tmp_path / "config.json").write_text(json.dumps(told))
    encoder = TransformersVision(pretrained=str(tmp_path))
    assert not {"id2label", "label2id", "of_an_older_version", "dtype"} & set(encoder.init_args["config"])
    assert TransformersVision(**encoder.init_args).init_args == encoder.init_args


def test_normalisation_is_that_of_the_folder_then_that_of_the_settings(tmp_path):
    model_of("vit").save_pretrained(tmp_path)
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    encoder = TransformersVision(pretrained=str(tmp_path))
    assert (encoder.init_args["mean"], encoder.init_args["std"]) == (told["image_mean"], told["image_std"])
    video = frames()
    with torch.no_grad():
        pixels = normalize(video[0], told["image_mean"], told["image_std"])
        expected = encoder.model(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(video)[0], expected, atol=1e-5, rtol=1e-5)
    given = TransformersVision(pretrained=str(tmp_path), mean=[0.7] * 3)
    assert (given.init_args["mean"], given.init_args["std"]) == ([0.7] * 3, told["image_std"])


@EVERY_MODEL
def test_another_image_size_gives_another_grid(model_type):
    encoder = TransformersVision(config=config_of(model_type), image_size=24)
    stride = 2 if model_type == "vjepa2" else 1
    assert (encoder.grid, encoder.image_size, encoder.frame_stride) == ((6, 6), 24, stride)
    assert encoder(frames(40)).shape == (2, 4 // stride, 36, encoder.patch_dim)


def test_vjepa_steps_see_each_other_and_images_do_not():
    video = frames(clips=1)
    other = video.clone()
    other[:, 3] *= -1
    for model_type, seen in (("vjepa2", True), ("dinov3_vit", False)):
        encoder = TransformersVision(config=config_of(model_type))
        moved = (encoder(video) - encoder(other)).abs().amax((0, 2, 3))
        assert bool(moved[0] > 0) is seen
        assert moved[-1] > 0


@pytest.mark.parametrize("shape", [(64, 40), (9, 16), (16, 16)])
def test_images_are_resized_as_pillow_does(shape):
    images = torch.rand(2, 3, *shape)
    expected = [
        [Image.fromarray(plane.numpy()).resize((16, 16), Image.Resampling.BICUBIC) for plane in i] for i in images
    ]
    expected = torch.stack([torch.stack([torch.from_numpy(np.array(plane)) for plane in i]) for i in expected])
    torch.testing.assert_close(resize(images, 16), expected, atol=1e-4, rtol=1e-4)


def tokenizer_config(vision, **changes):
    sizes = {"temporal_width": 12, "temporal_layers": 1, "temporal_heads": 3, "temporal_init": "random"}
    sizes |= {"spatiotemporal_width": 20, "spatiotemporal_layers": 1, "spatiotemporal_heads": 4, "num_tokens": 3}
    sizes |= {"resampler_layers": 1, "resampler_heads": 2, "resampler_head_dim": 6, "token_dim": 8, "pool_size": 2}
    return TokenizerConfig(vision=vision, **{"num_frames": 4, **sizes, **changes})


@EVERY_MODEL
def test_a_tokenizer_with_any_model_is_saved_and_loaded_without_the_folder(model_type, tmp_path):
    model_of(model_type).save_pretrained(tmp_path / "weights")
    vision = {"class_path": "transformers", "init_args": {"pretrained": str(tmp_path / "weights")}}
    tokenizer, video = VideoTokenizer(tokenizer_config(vision)), frames(20, count=16)
    save_component(tokenizer, tmp_path / "tokenizer")
    shutil.rmtree(tmp_path / "weights")
    twin = load_component(tmp_path / "tokenizer", VideoTokenizer)
    assert twin.config == tokenizer.config
    assert twin(video).shape == (2, 3, 8)
    assert torch.equal(twin(video), tokenizer(video))


@EVERY_MODEL
def test_a_clip_has_the_same_tokens_to_the_bit_in_every_batch(model_type):
    """Cached features have to equal those of a training step."""
    vision = {"class_path": "transformers", "init_args": {"config": config_of(model_type)}}
    tokenizer = VideoTokenizer(tokenizer_config(vision)).eval()
    video = torch.randint(0, 256, (6, 16, 3, 20, 20), dtype=torch.uint8)
    alone = torch.cat([encode_clips(tokenizer, clip[None]) for clip in video])
    assert torch.equal(encode_clips(tokenizer, video), alone)


@EVERY_MODEL
def test_shapes_of_pretrained_weights_are_known_without_reading_them(model_type, tmp_path):
    model_of(model_type).save_pretrained(tmp_path)
    whole = TransformersVision(pretrained=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with without_weights():
        encoder = TransformersVision(pretrained=str(tmp_path))
    assert {name: value.shape for name, value in encoder.named_parameters()} == {
        name: value.shape for name, value in whole.named_parameters()
    }
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert (encoder.init_args, encoder.grid) == (whole.init_args, whole.grid)
    with torch.device("meta"):
        on_meta = TransformersVision(pretrained=str(tmp_path))
    assert (on_meta.init_args, on_meta.frame_stride) == (whole.init_args, whole.frame_stride)
    config = tokenizer_config(functools.partial(TransformersVision, pretrained=str(tmp_path)), num_frames=6)
    stride = 2 if model_type == "vjepa2" else 1
    assert replace(config, token_source="spatiotemporal").tokens_per_clip == 6 // stride * 2 * 2


def test_a_tokenizer_has_as_many_positions_in_time_as_the_encoder_makes_steps():
    vision = {"class_path": "transformers", "init_args": {"config": config_of("vjepa2"), "frozen": False}}
    tokenizer = VideoTokenizer(tokenizer_config(vision, num_frames=6, token_source="spatiotemporal"))
    assert len(tokenizer.temporal.frame_positions) == len(tokenizer.spatiotemporal.frame_positions) == 3
    assert tokenizer.config.tokens_per_clip == 3 * 2 * 2
    tokens = tokenizer(frames(count=16))
    assert tokens.shape == (2, 12, 8)
    tokens.backward(torch.randn(tokens.shape))
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_frames_that_fill_no_whole_step_are_refused_when_the_tokenizer_is_built():
    vision = {"class_path": "transformers", "init_args": {"config": config_of("vjepa2")}}
    with pytest.raises(UserError, match=r"every 2 frames into one step in time, but it gets 5\n.*a multiple of 2"):
        VideoTokenizer(tokenizer_config(vision, num_frames=5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "pretrained=None and config=None; give exactly one"),
        ({"pretrained": "x", "config": {}}, "give exactly one"),
        ({"config": {"model_type": "clip"}}, "model_type 'clip' is not supported; supported: dinov2, .*\n.*'clip'"),
        ({"config": {"model_type": "mistral"}}, "model_type 'mistral' is not supported"),
        ({"config": {}}, "model_type None is not supported"),
        ({"config": config_of("vit", hiden_size=8)}, "vit has no setting hiden_size"),
        ({"config": config_of("vit", image_size=18)}, "image_size 18 does not divide into patches of patch_size 4"),
        ({"config": config_of("vit"), "image_size": 15}, "image_size 15 does not divide"),
        ({"config": config_of("vit", image_size=[16, 24])}, r"image_size \[16, 24\] must be one number"),
        ({"config": config_of("siglip_vision_model", num_attention_heads=3)}, "do not fit together: .*`num_heads`: 3"),
        ({"config": config_of("siglip2_vision_model", num_patches=15)}, "num_patches 15 is no square"),
        ({"pretrained": "no/folder"}, r"'no/folder' holds no config\.json .*\n.*hf download no/folder"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(settings, message):
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        TransformersVision(**settings)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("missing", [True, False])
def test_a_name_of_the_hub_is_read_from_the_local_cache_at_its_revision(missing, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    model_of("vit").save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download someone/tiny") if missing else nullcontext():
        encoder = TransformersVision(pretrained="someone/tiny", revision="main" if missing else "v1")
        assert encoder.source == "someone/tiny"
