"""DynamiCrafter's U-Net: the released code's recorded prediction, gradients, memory and compilation."""

from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from divot_backbones.denoisers.dynamicrafter.attention import TwoBranchAttention
from divot_backbones.denoisers.dynamicrafter.model import DynamiCrafterUNet
from divot_lightning.errors import UserError
from divot_lightning.interop.conversion import convert
from divot_lightning.interop.released_keys import KeyTable, with_prefixes
from divot_lightning.interop.unet_keys import RELEASED_UNET, unet_rules

DATA = Path(__file__).parents[2] / "data"
RECORDED = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_levels": (0, 1),
    "attention_head_dim": 16,
    "cross_attention_dim": 48,
}
"""Sizes of the recorded U-Net (tests/data, random weights)."""

TINY = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (0,),
    "attention_head_dim": 4,
    "cross_attention_dim": 6,
    "context_split": 3,
    "input_attention_heads": 2,
    "norm_num_groups": 4,
    "dropout": 0.0,
}


def unet(seed=0, **changes):
    """A tiny U-Net without zeros, so that every weight has an effect."""
    torch.manual_seed(seed)
    model = DynamiCrafterUNet(**{**TINY, **changes})
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


def inputs(seed=0, clips=2, frames=3, tokens=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(clips, 4, frames, 4, 6, generator=generator, dtype=dtype)
    condition = torch.randn(clips, tokens, 6, generator=generator, dtype=dtype)
    return latents, torch.tensor([7, 930])[:clips], condition


def recorded_unet():
    model = DynamiCrafterUNet(**RECORDED).eval()
    released = {name: value.float() for name, value in load_file(DATA / "detokenizer_state.safetensors").items()}
    rules = with_prefixes(unet_rules(model.config), RELEASED_UNET, "")
    table = KeyTable("U-Net", rules, {"image_proj_model.": "the condition resampler"})
    model.load_state_dict(convert(released, table, model, "recorded"))
    return model


@torch.no_grad()
def test_released_weights_give_the_recorded_prediction():
    recorded, model = load_file(DATA / "detokenizer_io.safetensors"), recorded_unet()
    given = (recorded["noisy_latents_bcthw"], recorded["timesteps"], recorded["condition"])
    prediction = model(*given, frame_stride=recorded["fs"]).sample
    torch.testing.assert_close(prediction, recorded["prediction_bcthw"], atol=1e-4, rtol=0)
    # The first clip was recorded with the default frame stride 3, the second with 8.
    by_default = model(*given).sample
    torch.testing.assert_close(by_default[0], recorded["prediction_bcthw"][0], atol=1e-4, rtol=0)
    assert (by_default[1] - recorded["prediction_bcthw"][1]).abs().max() > 0.01


def test_released_size_has_the_released_number_of_parameters():
    with torch.device("meta"):
        model = DynamiCrafterUNet()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e5) == 14388
    assert sum(isinstance(module, TwoBranchAttention) for module in model.modules()) == 16


def test_no_parameter_is_a_scalar_which_deepspeed_could_not_shard():
    assert all(parameter.ndim > 0 for parameter in unet().parameters())


def test_gradients_are_the_slopes_of_the_loss():
    model, given = unet().double().eval(), inputs(dtype=torch.float64)
    target = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss():
        return (model(*given).sample - target).square().mean()

    loss().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    # Central differences along random directions, one for the parameters of each layer.
    generator, step = torch.Generator().manual_seed(2), 1e-5
    for name, layer in model.named_children():
        parameters = list(layer.parameters())
        if not parameters:
            continue
        ways = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in parameters]
        slope = sum((value.grad * way).sum() for value, way in zip(parameters, ways, strict=True))
        with torch.no_grad():
            values = []
            for sign in (1, -2, 1):
                for value, way in zip(parameters, ways, strict=True):
                    value += sign * step * way
                values.append(loss())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope.item(), rel=1e-6), name


def test_a_new_unet_predicts_zero_and_each_residual_branch_starts_as_the_identity():
    torch.manual_seed(0)
    model = DynamiCrafterUNet(**TINY)
    latents, time, condition = inputs()
    assert not model(latents, time, condition).sample.any()
    transformer = model.input_transformer
    state = torch.randn(6, 8, 4, 6)
    assert torch.equal(transformer(state, 3), state)
    assert torch.equal(model.mid_layers[0].temporal_conv(torch.ones(3, 16, 2, 3), 3), torch.ones(3, 16, 2, 3))


@torch.no_grad()
def test_clips_of_a_batch_are_independent_and_frames_of_a_clip_are_not():
    model, (latents, time, condition) = unet().eval(), inputs()
    together = model(latents, time, condition).sample
    alone = model(latents[1:], time[1:], condition[1:]).sample
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)
    changed = latents.clone()
    changed[0, :, 2] += 1
    change = (model(changed, time, condition).sample - together).abs().amax(dim=(1, 3, 4))
    assert (change[0] > 1e-4).all()
    assert (change[1] < 1e-5).all()


@torch.no_grad()
def test_one_branch_ignores_the_order_of_tokens_and_two_branches_do_not():
    latents, time, condition = inputs()
    shuffled = condition[:, [4, 2, 0, 3, 1]]
    one, two = unet(context_split=None).eval(), unet().eval()
    torch.testing.assert_close(
        one(latents, time, shuffled).sample, one(latents, time, condition).sample, atol=1e-5, rtol=1e-4
    )
    assert (two(latents, time, shuffled).sample - two(latents, time, condition).sample).abs().max() > 1e-3
    assert not any("gate" in name or "second" in name for name, _ in one.named_parameters())


@torch.no_grad()
def test_gate_scales_the_second_branch_from_nothing_to_twice():
    torch.manual_seed(0)
    attention = TwoBranchAttention(8, 2, 4, 6, split=3)
    state, context = torch.randn(4, 5, 8), torch.randn(2, 7, 6)

    def read(gate):
        attention.gate.fill_(gate)
        return attention(state, context)

    closed, half, opened = read(-50.0), read(0.0), read(50.0)
    torch.testing.assert_close(opened - closed, 2 * (half - closed))
    changed = context.clone()
    changed[:, 3:] += 1
    attention.gate.fill_(-50.0)
    torch.testing.assert_close(attention(state, changed), closed)


@torch.no_grad()
def test_all_frames_of_a_clip_read_the_condition_of_their_clip():
    torch.manual_seed(0)
    attention = TwoBranchAttention(8, 2, 4, 6, split=3)
    state, context = torch.randn(6, 5, 8), torch.randn(2, 7, 6)
    one_by_one = [attention(state[index : index + 1], context[index // 3 :][:1]) for index in range(6)]
    torch.testing.assert_close(attention(state, context), torch.cat(one_by_one))


def gradients(model, given):
    model.zero_grad()
    stored = {}

    def keep(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(*given).sample.square().mean()
    loss.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = sum(size for address, size in stored.items() if address not in weights)
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()], held


def test_checkpointing_holds_less_and_changes_neither_loss_nor_gradients():
    model, given = unet(dropout=0.3).train(), inputs(frames=8)
    loss, expected, plain = gradients(model, given)
    model.enable_gradient_checkpointing()
    again, actual, checkpointed = gradients(model, given)
    assert torch.equal(loss, again)
    torch.testing.assert_close(actual, expected)
    assert checkpointed < 0.4 * plain
    model.disable_gradient_checkpointing()
    assert gradients(model, given)[2] == pytest.approx(plain, rel=0.01)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_predicts_as_float32_but_for_rounding(autocast):
    model, (latents, time, condition) = unet().eval(), inputs()
    expected = model(latents, time, condition).sample
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = model(latents, time, condition).sample
    else:
        prediction = model.bfloat16()(latents.bfloat16(), time, condition.bfloat16()).sample
    assert prediction.dtype == torch.bfloat16
    assert (prediction.float() - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
def test_repeated_blocks_compile_without_graph_breaks_beyond_the_usual_limit():
    # One level still has two sizes of residual blocks, and so needs more than one version of their function.
    model, given = unet(block_out_channels=(8,)).eval(), inputs()
    expected = model(*given).sample
    backend = CompileCounter()
    with torch._dynamo.config.patch(recompile_limit=1):
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
        torch.testing.assert_close(model(*given).sample, expected)
    blocks = [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]
    assert 4 < backend.frame_count <= len(blocks)


@torch.no_grad()
def test_a_saved_folder_gives_the_same_model(tmp_path):
    model = unet().eval()
    model.save_pretrained(tmp_path)
    loaded = DynamiCrafterUNet.from_pretrained(tmp_path)
    assert isinstance(loaded, ModelMixin)
    torch.testing.assert_close(loaded(*inputs()).sample, model(*inputs()).sample)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (8, 18)}, "multiples of norm_num_groups 4; 18 is not"),
        ({"attention_head_dim": 5}, "8 channels of level 0 do not divide into heads of attention_head_dim 5"),
        ({"attention_levels": (0, 2)}, r"attention_levels \[2\] are not among 0 to 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DynamiCrafterUNet(**{**TINY, **changes})


def test_inputs_that_do_not_fit_are_refused():
    latents, time, condition = inputs()
    with pytest.raises(UserError, match="latents of 3x6 do not divide by 2"):
        unet()(latents[:, :, :, :3], time, condition)
    with pytest.raises(UserError, match="reads 3 condition tokens, and of 2 none"):
        unet()(latents, time, condition[:, :2])
