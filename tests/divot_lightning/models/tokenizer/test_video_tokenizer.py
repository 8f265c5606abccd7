import functools
import json
import shutil
from dataclasses import asdict

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from divot_backbones.vision.clip import ClipVision
from divot_lightning.checkpoint.components import load_component, read_settings, save_component
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.vision_encoders import VisionEncoder


def tiny(**changes):
    """The config of a small tokenizer; `vision` may be changed settings of the ViT, or another encoder."""
    vision, given = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "heads": 2}, changes.pop("vision", {})
    if isinstance(given, dict):
        given = functools.partial(ClipVision, **{"frozen": False, **vision, **given})
    sizes = {
        "vision": given,
        "temporal_width": 12,
        "temporal_layers": 1,
        "temporal_heads": 3,
        "temporal_init": "random",
        "pool_size": 2,
        "spatiotemporal_width": 20,
        "spatiotemporal_layers": 1,
        "spatiotemporal_heads": 4,
        "num_tokens": 3,
        "resampler_layers": 1,
        "resampler_heads": 2,
        "resampler_head_dim": 6,
        "token_dim": 8,
    }
    return TokenizerConfig(**{**sizes, **changes})


def clip(frames=16, size=16, batch=2):
    return torch.rand(batch, frames, 3, size, size) * 2 - 1


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 3),
        ({"num_tokens": 7, "pool_size": 4}, 7),
        ({"token_source": "spatiotemporal"}, 20),
        ({"token_source": "spatiotemporal", "pool_size": 3, "num_frames": 2}, 18),
    ],
)
def test_a_clip_becomes_the_stated_number_of_tokens(changes, tokens):
    tokenizer = VideoTokenizer(tiny(**changes))
    assert tokenizer.config.tokens_per_clip == tokens
    assert tokenizer(clip()).shape == (2, tokens, 8)


def test_frames_of_any_size_are_resized():
    tokenizer = VideoTokenizer(tiny())
    assert tokenizer(clip(size=24)).shape == tokenizer(torch.rand(2, 5, 3, 12, 20)).shape == (2, 3, 8)


def test_a_dense_clip_and_its_sparse_frames_have_the_same_tokens():
    tokenizer, video = VideoTokenizer(tiny()), clip()
    assert torch.equal(tokenizer(video), tokenizer(video[:, [0, 4, 8, 12, 15]]))
    assert torch.equal(tokenizer(tokenizer.select_frames(video)), tokenizer(video))


@pytest.mark.parametrize(("frame", "read"), [(0, True), (3, False), (4, True), (13, False), (15, True)])
def test_tokens_depend_on_the_chosen_frames_only(frame, read):
    tokenizer, video = VideoTokenizer(tiny()), clip(batch=1)
    other = video.clone()
    other[:, frame] *= -1
    difference = (tokenizer(video) - tokenizer(other)).abs().amax(-1)
    assert bool((difference > 1e-5).all()) is read
    assert bool((difference == 0).all()) is not read


def test_tokens_depend_on_the_order_of_the_frames():
    tokenizer, video = VideoTokenizer(tiny()), clip(frames=5)
    assert not torch.allclose(tokenizer(video), tokenizer(video.flip(1)), atol=1e-3)


def test_clips_of_a_batch_do_not_depend_on_each_other():
    tokenizer, video = VideoTokenizer(tiny()), clip()
    torch.testing.assert_close(tokenizer(video)[1:], tokenizer(video[1:]), atol=1e-5, rtol=1e-5)


def test_position_bound_tokens_are_ordered_by_frame_then_row_then_column():
    """Without attention and mixing over time, each token depends on one grid position of one frame."""
    tokenizer = VideoTokenizer(tiny(token_source="spatiotemporal"))
    blocks = [*tokenizer.temporal.blocks, *tokenizer.spatiotemporal.blocks]
    for block in blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    patches = torch.randn(1, 5, 16, 16)
    other = patches.clone()
    row, column = 1, 3
    other[:, 2, 4 * row + column] += torch.randn(16)
    moved = (tokenizer.encode_patches(patches) - tokenizer.encode_patches(other)).abs().amax(-1)[0] > 1e-5
    assert moved.nonzero().flatten().tolist() == [2 * 4 + 2 * (row // 2) + column // 2]


@pytest.mark.parametrize("token_source", ["perceiver", "spatiotemporal"])
def test_gradient_reaches_every_trained_weight(token_source):
    tokenizer = VideoTokenizer(tiny(token_source=token_source))
    (tokenizer(clip()) * torch.randn(tokenizer.config.tokens_per_clip, 8)).sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        # A bias on all keys shifts all scores of a query equally, which the softmax undoes.
        assert parameter.grad.abs().sum() > 0 or "k_proj.bias" in name, name


def test_frozen_vit_gets_no_gradient_and_the_rest_does():
    tokenizer = VideoTokenizer(tiny(vision={"frozen": True})).train()
    tokenizer(clip()).square().sum().backward()
    trained = {name for name, parameter in tokenizer.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in tokenizer.named_parameters() if not name.startswith("vision.")}
    assert not tokenizer.vision.training
    assert tokenizer.temporal.training


def test_zero_init_gives_all_clips_the_same_tokens():
    tokens = VideoTokenizer(tiny(temporal_init="zero"))(clip())
    assert torch.equal(tokens[0], tokens[1])


def test_bfloat16_autocast_is_finite_and_near_float32():
    tokenizer, video = VideoTokenizer(tiny()), clip()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = tokenizer(video)
    assert torch.isfinite(tokens).all()
    torch.testing.assert_close(tokens.float(), tokenizer(video), atol=0.2, rtol=0)


def test_config_survives_json_and_rebuilds_the_tokenizer():
    tokenizer, video = VideoTokenizer(tiny()), clip()
    twin = VideoTokenizer(TokenizerConfig(**json.loads(json.dumps(asdict(tokenizer.config)))))
    assert twin.config == tokenizer.config
    twin.load_state_dict(tokenizer.state_dict())
    assert torch.equal(twin(video), tokenizer(video))


def test_a_tokenizer_with_a_pretrained_vit_is_loaded_from_its_component_without_the_vit_folder(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(tmp_path / "vit")
    tokenizer, video = VideoTokenizer(tiny(vision={"pretrained": str(tmp_path / "vit"), "frozen": True})), clip()
    save_component(tokenizer, tmp_path / "tokenizer")
    shutil.rmtree(tmp_path / "vit")
    twin = load_component(tmp_path / "tokenizer", VideoTokenizer)
    assert torch.equal(twin(video), tokenizer(video))
    assert not any(parameter.requires_grad for parameter in twin.vision.parameters())


def test_sizes_of_a_pretrained_vit_replace_the_given_ones(tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    CLIPVisionModel(CLIPVisionConfig(image_size=24, patch_size=8, **sizes)).save_pretrained(tmp_path)
    config = tiny(vision={"pretrained": str(tmp_path)})
    tokenizer = VideoTokenizer(config)
    assert (tokenizer.vision.patch_dim, tokenizer.vision.grid, tokenizer.config.image_size) == (12, (3, 3), 24)
    assert tokenizer.config.vision.init_args["pretrained"] is None
    assert config.vision.keywords["pretrained"] == str(tmp_path)
    assert tokenizer(clip()).shape == (2, 3, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"image_size": 18}}, "image_size 18"),
        ({"pool_size": 5}, "pool_size 5 is not between 1 and 4; the vision encoder has 4 x 4 patches"),
        ({"pool_size": 0}, "pool_size 0 "),
        ({"temporal_width": 13}, "temporal transformer: width 13 .* 3 heads"),
        ({"spatiotemporal_width": 21}, "spatio-temporal transformer: width 21 .* 4 heads"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_tokens": 0}, "num_queries is 0"),
        ({"token_source": "vit"}, "token_source is 'vit'; choose one of: perceiver, spatiotemporal"),
        ({"temporal_init": "ones"}, "temporal_init is 'ones'; choose one of: zero, random"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        VideoTokenizer(tiny(**changes))


def test_settings_of_an_encoder_without_its_class_are_refused():
    with pytest.raises(UserError, match=r"vision=\{'width': 8\} names no class; give \{class_path: clip, init_args"):
        TokenizerConfig(vision={"width": 8})


def test_too_short_clips_are_refused():
    with pytest.raises(UserError, match="the clip has 3 frames; it reads 5"):
        VideoTokenizer(tiny())(clip(frames=3))


def test_stored_pixels_are_refused():
    with pytest.raises(UserError, match=r"torch\.uint8"):
        VideoTokenizer(tiny())(torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8))


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        tokenizer = VideoTokenizer(TokenizerConfig(vision=ClipVision))
    trained = sum(parameter.numel() for parameter in tokenizer.parameters() if parameter.requires_grad)
    assert round(trained / 1e6, 1) == 171.6
    assert tokenizer.config.tokens_per_clip == 64
    bound = TokenizerConfig(vision=ClipVision, token_source="spatiotemporal")
    assert bound.tokens_per_clip == 125


def test_a_component_from_the_time_of_one_vision_encoder_is_read(tmp_path):
    tokenizer, video = VideoTokenizer(tiny(token_source="spatiotemporal")), clip(size=20)
    save_component(tokenizer, tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "config.json"
    described = json.loads(file.read_text())
    settings = described["config"]["vision"]["init_args"]
    del settings["revision"]
    file.write_text(json.dumps({**described, "config": {**described["config"], "vision": settings}}))
    twin = load_component(tmp_path / "tokenizer", VideoTokenizer)
    assert torch.equal(twin(video), tokenizer(video))
    assert twin.config == tokenizer.config
    read = read_settings(tmp_path / "tokenizer", VideoTokenizer, TokenizerConfig)
    assert (read.image_size, read.tokens_per_clip) == (16, 20)


class Halves(VisionEncoder):
    """A grid of 2 x 3 patches: the mean colour of each."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__(frozen)
        self.layer = torch.nn.Linear(3, 4)
        self.describe(patch_dim=4, grid=(2, 3), image_size=6)

    def encode(self, frames_BF3HW):
        colours = torch.nn.functional.adaptive_avg_pool2d(frames_BF3HW.flatten(0, 1), self.grid)
        return self.layer(colours.flatten(2).transpose(1, 2)).unflatten(0, frames_BF3HW.shape[:2])


def test_an_encoder_with_a_grid_that_is_not_square_is_pooled_to_a_square():
    tokenizer = VideoTokenizer(tiny(vision=Halves, pool_size=2, position_init="sin_cos"))
    assert tokenizer(clip(size=6)).shape == (2, 3, 8)
    patches = torch.zeros(1, 5, 6, 4)
    tokenizer.temporal = torch.nn.Linear(4, 20, bias=False)
    tokenizer.pooled_norm = tokenizer.spatiotemporal = tokenizer.to_tokens = torch.nn.Identity()
    patches[0, 3, 1 * 3 + 2] = 1.0  # row 1, column 2
    moved = tokenizer.encode_patches(patches)[0].abs().sum(-1) > 0
    assert moved.nonzero().tolist() == [[3, 3]]  # row 1, column 1 of the pooled grid


def test_a_pool_size_above_the_shorter_side_of_the_grid_is_refused():
    with pytest.raises(UserError, match="pool_size 3 is not between 1 and 2; the vision encoder has 2 x 3 patches"):
        VideoTokenizer(tiny(vision=Halves, pool_size=3))


def test_a_component_with_an_encoder_that_is_not_trusted_imports_nothing(tmp_path, monkeypatch):
    save_component(VideoTokenizer(tiny()), tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "config.json"
    file.write_text(file.read_text().replace("divot_backbones.vision.clip.ClipVision", "strange_encoder.Encoder"))
    (tmp_path / "strange_encoder.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the stored tokenizer names the class 'strange_encoder\.Encoder'"):
        load_component(tmp_path / "tokenizer", VideoTokenizer)
