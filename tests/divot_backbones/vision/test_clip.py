import functools
import logging
import math
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from divot_backbones.vision.clip import CLIP_MEAN, CLIP_STD, ClipVision
from divot_backbones.vision.pixels import normalize, resize_as_released
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.config import TokenizerConfig

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
TEXT_SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def tiny(**changes):
    sizes = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "heads": 2}
    return {**sizes, **changes}


@pytest.fixture
def clip_folder(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@contextmanager
def propagated(name):
    """Let caplog record a logger that does not propagate."""
    logger = logging.getLogger(name)
    before, logger.propagate = logger.propagate, True
    try:
        yield
    finally:
        logger.propagate = before


def blurred_by_loop(image, factor):
    """Return a Gaussian blur along the rows of one plane, with mirrored edges, pixel by pixel."""
    sigma, reach = (factor - 1) / 2, max(int(2 * (factor - 1)), 3) // 2
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)]
    result = torch.zeros_like(image)
    last = image.shape[0] - 1
    for row in range(last + 1):
        for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
            source = abs(row + offset)
            source = 2 * last - source if source > last else source
            result[row] += weight / sum(weights) * image[source]
    return result


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_is_a_gaussian_blur_then_a_bicubic_with_aligned_corners(factor):
    image = torch.randn(1, 1, 6 * factor, 6 * factor, dtype=torch.float64)
    blurred = blurred_by_loop(blurred_by_loop(image[0, 0], factor).T, factor).T
    expected = torch.nn.functional.interpolate(blurred[None, None], (6, 6), mode="bicubic", align_corners=True)
    torch.testing.assert_close(resize_as_released(image, 6), expected)


def test_shrinking_a_fine_pattern_gives_its_mean():
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 3, 64, 64)
    assert resize_as_released(stripes, 16).abs().max() < 0.02


def test_enlarging_keeps_the_corner_pixels():
    image = torch.randn(2, 3, 8, 8)
    large = resize_as_released(image, 20)
    assert large.shape == (2, 3, 20, 20)
    torch.testing.assert_close(large[..., [0, 0, -1, -1], [0, -1, 0, -1]], image[..., [0, 0, -1, -1], [0, -1, 0, -1]])


def test_images_of_the_right_size_are_not_resampled():
    image = torch.randn(2, 3, 8, 8)
    assert resize_as_released(image, 8) is image


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (5, 5), (16, 16)])
def test_a_flat_image_stays_flat_at_any_shape(shape):
    resized = resize_as_released(torch.full((1, 3, *shape), 0.3), 8)
    torch.testing.assert_close(resized, torch.full((1, 3, 8, 8), 0.3))


def test_pixels_are_normalised_as_clip_expects():
    black_to_white = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 8, 8)
    pixels = normalize(black_to_white, CLIP_MEAN, CLIP_STD)
    for channel in range(3):
        expected = torch.tensor([(value - CLIP_MEAN[channel]) / CLIP_STD[channel] for value in (0.0, 1.0)])
        torch.testing.assert_close(pixels[:, channel, 0, 0], expected)


def test_features_are_the_last_hidden_state_without_the_class_token(clip_folder):
    encoder = ClipVision(pretrained=str(clip_folder))
    frames = torch.rand(2, 3, 3, 8, 8) * 2 - 1
    reference = CLIPVisionModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        expected = reference(pixel_values=normalize(frames[1], CLIP_MEAN, CLIP_STD)).last_hidden_state[:, 1:]
        torch.testing.assert_close(encoder(frames)[1], expected)


def test_vision_part_of_a_whole_clip_model_is_loaded_without_a_list_of_the_rest(tmp_path, caplog):
    whole = CLIPModel(CLIPConfig(vision_config=SIZES, text_config={**TEXT_SIZES, "vocab_size": 20}))
    whole.save_pretrained(tmp_path)
    caplog.clear()
    with propagated("transformers"):
        encoder = ClipVision(pretrained=str(tmp_path))
    assert "text_model" not in caplog.text
    theirs = {name.removeprefix("vision_model."): value for name, value in whole.state_dict().items()}
    assert all(torch.equal(value, theirs[name]) for name, value in encoder.model.state_dict().items())


def test_half_precision_weights_are_loaded_as_float32(clip_folder):
    CLIPVisionModel.from_pretrained(clip_folder).half().save_pretrained(clip_folder)
    encoder = ClipVision(pretrained=str(clip_folder))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_config_of_a_pretrained_vit_rebuilds_it_without_the_folder(clip_folder):
    encoder = ClipVision(pretrained=str(clip_folder))
    shutil.rmtree(clip_folder)
    sizes = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24}
    rest = {"pretrained": None, "revision": None, "frozen": True, "activation": "quick_gelu", "layer_norm_eps": 1e-5}
    assert encoder.init_args == {**sizes, **rest}
    twin = ClipVision(**encoder.init_args)
    twin.load_state_dict(encoder.state_dict())
    frames = torch.rand(1, 2, 3, 8, 8) * 2 - 1
    assert torch.equal(twin(frames), encoder(frames))


def test_frozen_vit_stays_in_eval_mode_and_gets_no_gradient():
    encoder = ClipVision(**tiny(frozen=True)).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(torch.rand(1, 2, 3, 8, 8)).requires_grad


def test_trained_vit_follows_the_training_mode_and_gets_gradients_everywhere():
    encoder = ClipVision(**tiny(frozen=False))
    assert encoder.training
    assert not encoder.eval().training
    (encoder(torch.rand(1, 2, 3, 8, 8)) * torch.randn(16)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # A bias on all keys shifts all scores of a query equally, which the softmax undoes.
        assert parameter.grad.abs().sum() > 0 or "k_proj.bias" in name, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10}, "image_size 10 .* patch_size 4"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"width": 17}, "width 17 .* 2 heads"),
        ({"layers": 0}, "layers is 0"),
        ({"activation": "gulu"}, "activation 'gulu' is unknown"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ClipVision(**tiny(**changes))


def test_a_folder_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"'no/such/folder' holds no config\.json"):
        ClipVision(pretrained="no/such/folder")


def test_weights_that_the_folder_lacks_are_named(clip_folder):
    weights = load_file(clip_folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.1.mlp.fc1.weight"))
    del weights[lost]
    save_file(weights, clip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights.*layers\.1\.mlp\.fc1\.weight"):
        ClipVision(pretrained=str(clip_folder))


def test_default_sizes_are_those_of_vit_h_14():
    with torch.device("meta"):
        encoder = ClipVision()
    # open_clip's ViT-H-14 has 632.08 M in its image tower, 1.31 M of them the projection that is not used here.
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 2) == 630.76


def test_the_number_of_steps_is_known_before_a_pretrained_vit_is_loaded(clip_folder):
    (clip_folder / "model.safetensors").unlink()
    vision = functools.partial(ClipVision, pretrained=str(clip_folder))
    before = torch.get_rng_state()
    assert TokenizerConfig(vision=vision, token_source="spatiotemporal", pool_size=2).tokens_per_clip == 5 * 2 * 2
    assert torch.equal(torch.get_rng_state(), before)
