"""Video models of `diffusers` as denoisers, each at a tiny size."""

import json

import diffusers
import pytest
import torch
from tiny_models import DENOISERS as TINY

from divot_backbones.denoisers import diffusers_denoiser as adapters
from divot_backbones.denoisers.diffusers_denoiser import to_layout
from divot_backbones.pretrained import OTHER_INPUTS
from divot_lightning.errors import UserError
from divot_lightning.parts.registries.kinds import DENOISERS
from divot_lightning.testing.denoiser_conformance import DenoiserConformance

SIZES = DenoiserConformance.sizes
JOINT = ("cogvideox", "hunyuan", "mochi")
"""Models whose latents and condition share their attention."""


def build(name, sizes=SIZES, **settings):
    torch.manual_seed(0)
    return DENOISERS.build(name, {"config": TINY[name], **settings}, **sizes)


class _Conformance(DenoiserConformance):
    name = ""

    def make_denoiser(self, **sizes):
        return build(self.name, sizes)


class TestUNet3D(_Conformance):
    name = "unet3d"


class TestLatte(_Conformance):
    name = "latte"


class TestWan(_Conformance):
    name = "wan"


class TestLTX(_Conformance):
    name = "ltx"


class TestCogVideoX(_Conformance):
    name = "cogvideox"


class TestHunyuanVideo(_Conformance):
    name = "hunyuan"


class TestMochi(_Conformance):
    name = "mochi"


class TestCosmos(_Conformance):
    name = "cosmos"


class TestWanWithLoRA(_Conformance):
    def make_denoiser(self, **sizes):
        return build("wan", sizes, training="lora", lora_rank=2)


class TestCogVideoXWithRotaryPositions(_Conformance):
    def make_denoiser(self, **sizes):
        config = {**TINY["cogvideox"], "use_rotary_positional_embeddings": True, "sample_width": 12}
        return DENOISERS.build("cogvideox", {"config": config}, **sizes)


def test_every_denoiser_that_is_installed_has_a_tiny_test():
    installed = {part.name for part in DENOISERS.installed() if "diffusers_denoiser" in part.class_path}
    assert installed == set(TINY)


def slow_call(name, model, latents, time, condition):
    """Call the model as its own pipeline in `diffusers` does."""
    first = latents.transpose(1, 2)
    if name == "ltx":
        tokens = first.permute(0, 2, 3, 4, 1).reshape(len(latents), -1, latents.shape[2])
        mask = torch.ones(condition.shape[:2])
        scale = (8 / 8, 32, 32)
        shape = {"num_frames": 4, "height": 4, "width": 4, "rope_interpolation_scale": scale}
        out = model(tokens, condition, time, mask, **shape).sample
        return out.reshape(len(latents), 4, 4, 4, -1).permute(0, 1, 4, 2, 3)
    if name == "cogvideox":
        return model(latents, condition, time).sample
    return model(first, timestep=time, encoder_hidden_states=condition).sample[:, :4].transpose(1, 2)


@pytest.mark.parametrize("name", ["unet3d", "latte", "wan", "ltx", "cogvideox"])
def test_the_prediction_is_that_of_the_model_called_as_its_pipeline_calls_it(name):
    denoiser = build(name).eval()
    latents, condition = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 3, 6)
    time = torch.tensor([999, 300])
    expected = slow_call(name, denoiser.model, latents, time, condition)
    torch.testing.assert_close(denoiser(latents, time, condition), expected, atol=1e-5, rtol=1e-4)


def test_time_and_direction_of_mochi_are_turned_round():
    denoiser = build("mochi").eval()
    latents, condition, time = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 3, 6), torch.tensor([900.0, 100.0])
    given = {"timestep": 1000 - time, "encoder_attention_mask": torch.ones(2, 3, dtype=torch.bool)}
    expected = denoiser.model(latents.transpose(1, 2), denoiser.project(condition), **given).sample.transpose(1, 2)
    torch.testing.assert_close(denoiser(latents, time, condition), -expected)


@pytest.mark.parametrize("layout", ["channels_first", "frames_first", "packed"])
def test_axes_are_turned_back(layout):
    latents = torch.randn(2, 4, 3, 5, 6)
    sizes = adapters.Sizes(3, 4, (5, 6), 3, 6)
    assert torch.equal(adapters.from_layout(to_layout(latents, layout), layout, sizes), latents)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_pretrained_folder_gives_the_models_weights_and_a_projection_to_its_width(name, tmp_path):
    other = {**SIZES, "condition_dim": 16}
    trained = build(name, other)
    trained.model.save_pretrained(tmp_path / "model")
    loaded = DENOISERS.build(name, {"pretrained": str(tmp_path), "subfolder": "model"}, **SIZES)
    assert all(torch.equal(value, loaded.model.state_dict()[key]) for key, value in trained.model.state_dict().items())
    width = loaded.model.config[loaded.row.condition_key]
    assert loaded.project.weight.shape == (width, SIZES["condition_dim"])
    assert loaded.init_args["pretrained"] is None
    assert loaded.source is None


@pytest.mark.parametrize("name", sorted(TINY))
def test_lora_trains_adapters_and_the_projection_only(name, tmp_path):
    build(name).model.save_pretrained(tmp_path)
    denoiser = DENOISERS.build(name, {"pretrained": str(tmp_path), "training": "lora", "lora_rank": 2}, **SIZES)
    trained = [key for key, value in denoiser.named_parameters() if value.requires_grad]
    assert any("lora_A" in key for key in trained)
    assert all("lora_" in key or key.startswith(("project.", "pool.")) for key in trained)
    assert denoiser.source == str(tmp_path)
    before = build(name).eval()
    latents, condition, time = torch.randn(2, 4, 4, 4, 4), torch.randn(2, 3, 6), torch.tensor([900.0, 100.0])
    if denoiser.pool is None and name != "mochi":
        torch.testing.assert_close(denoiser.eval()(latents, time, condition), before(latents, time, condition))


@pytest.mark.parametrize("name", sorted(set(TINY) - set(JOINT)))
def test_cross_attention_training_trains_what_reads_the_condition(name):
    denoiser = build(name, training="cross_attention")
    trained = {key for key, value in denoiser.named_parameters() if value.requires_grad}
    frozen = {key for key, value in denoiser.named_parameters() if not value.requires_grad}
    assert trained
    assert any("attn1" in key for key in frozen)
    # A layer that is frozen must not be the only one that the condition passes through: its width is the condition's.
    reading = [key for key, value in denoiser.model.named_parameters() if "attn2.to_k.weight" in key]
    reading = [key for key in reading if "temp" not in key and "transformer_in" not in key]
    assert reading
    assert {f"model.{key}" for key in reading} <= trained


@pytest.mark.parametrize("name", JOINT)
def test_cross_attention_training_is_refused_where_there_is_none(name):
    with pytest.raises(UserError, match="share their attention layers"):
        build(name, training="cross_attention")


@pytest.mark.parametrize("name", sorted(TINY))
def test_checkpointing_changes_neither_prediction_nor_gradients(name):
    latents, time = torch.randn(2, 4, 4, 4, 4), torch.tensor([900.0, 100.0])
    condition = torch.randn(2, 3, 6, requires_grad=True)
    kept, results = [], []
    for checkpointing in (False, True):
        denoiser, sizes = build(name, gradient_checkpointing=checkpointing).train(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, sizes=sizes: sizes.append(one.nbytes) or one, lambda one: one
        ):
            prediction = denoiser(latents, time, condition)
        (gradient,) = torch.autograd.grad(prediction.square().sum(), condition)
        results.append((prediction.detach(), gradient))
        kept.append(sum(sizes))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert kept[1] < kept[0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("wan", {"config": None}, "neither of pretrained and config given"),
        ("wan", {"pretrained": "somewhere"}, "both of pretrained and config given"),
        ("wan", {"config": {"depht": 3}}, r"config does not fit WanTransformer3DModel: .*depht"),
        ("wan", {"config": {**TINY["wan"], "in_channels": 5}}, "in_channels of this Wan.* is 5, .* need 4"),
        ("latte", {"config": {**TINY["latte"], "sample_size": 8}}, "sample_size of this Latte.* is 8, .* need 4"),
        ("wan", {"training": "some"}, "training is 'some'; choose one of: full, lora, cross_attention"),
        ("wan", {"config": None, "pretrained": "a/b"}, "revision to a commit"),
    ],
)
def test_wrong_settings_are_refused(name, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, **settings)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(("name", "channels"), [("wan", 9), ("cogvideox", 8), ("hunyuan", 9), ("cosmos", 5)])
def test_image_to_video_weights_are_refused_with_the_reason(name, channels, tmp_path):
    build(name, {**SIZES, "channels": channels}).model.save_pretrained(tmp_path)
    message = (
        rf"in_channels of this .* is {channels}, and the other parts need 4\nan image-to-video model takes a picture"
    )
    with pytest.raises(UserError, match=message):
        DENOISERS.build(name, {"pretrained": str(tmp_path)}, **SIZES)


def test_cogvideox_of_patches_of_two_frames_is_refused_with_the_frames_that_do_not_divide():
    config = {**TINY["cogvideox"], "patch_size_t": 2, "use_rotary_positional_embeddings": True}
    with pytest.raises(UserError, match=r"5 frames of 4x4 latents do not divide .*: 2 frames of 2x2"):
        build("cogvideox", {**SIZES, "frames": 5}, config=config)


@pytest.mark.parametrize("name", sorted(OTHER_INPUTS))
def test_models_with_other_inputs_are_refused_with_the_reason(name, tmp_path):
    assert hasattr(diffusers, name)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match=rf"holds a {name}, not a LTXVideo.*\n{OTHER_INPUTS[name]}"):
        DENOISERS.build("ltx", {"pretrained": str(tmp_path)}, **SIZES)


def test_latents_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(UserError, match=r"4 frames of 3x4 latents do not divide into the patches .* 1 frames of 2x2"):
        build("wan", {**SIZES, "grid": (3, 4)})


def test_latte_refuses_oblong_frames():
    with pytest.raises(UserError, match="square frames only, and these have 4x6"):
        build("latte", {**SIZES, "grid": (4, 6)})


def test_another_models_folder_is_refused(tmp_path):
    build("latte").model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a LatteTransformer3DModel, not a WanTransformer3DModel"):
        DENOISERS.build("wan", {"pretrained": str(tmp_path)}, **SIZES)


def test_the_recorded_config_is_json_and_holds_the_derived_sizes():
    denoiser = build("latte")
    config = json.loads(json.dumps(denoiser.init_args))["config"]
    assert (config["in_channels"], config["video_length"], config["caption_channels"]) == (4, 4, 6)
    assert isinstance(denoiser.model, diffusers.LatteTransformer3DModel)
