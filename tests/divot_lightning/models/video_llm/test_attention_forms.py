"""Three forms of the mask (causal flag, dense mask, block mask) give the same losses and gradients."""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers.integrations import flex_attention as transformers_flex

from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.errors import UserError
from divot_lightning.models import block_attention
from divot_lightning.models.block_attention import SDPA_OR_FLEX, takes_block_masks
from divot_lightning.models.recompilation import RECOMPILE_LIMIT
from divot_lightning.models.video_llm import attention_mask, probe_checks
from divot_lightning.models.video_llm.attention_mask import batch_mask, block_mask, dense_mask, row_positions
from divot_lightning.models.video_llm.language_model import language_model_from_config
from divot_lightning.models.video_llm.language_model_probe import probe_language_model
from divot_lightning.models.video_llm.model import VideoLLM
from tests.divot_lightning.models.video_llm.test_attention_mask import batch_of
from tests.divot_lightning.models.video_llm.test_language_model_probe import FITTING, FITTING_EAGER, SIZES
from tests.divot_lightning.models.video_llm.test_model_packing import MIXED, losses_and_gradients
from tests.divot_lightning.models.video_llm.tiny_video_llm import (
    GENERATE,
    GENERATION_MODES,
    LORA,
    READ,
    WORDS,
    features,
    losses,
    num_clips,
)
from tests.divot_lightning.parts.sequences.test_layout import samples

WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of width 16, the smallest that FlexAttention has on CUDA."""


@contextmanager
def blocks_on_cpu(flex=torch_flex.flex_attention):
    """Take block masks on the CPU as on CUDA, with torch's uncompiled FlexAttention, which has a backward pass.

    torch refuses gradients on CPUs since its compiled kernel has none there.
    """

    def takes(config, device):
        return takes_block_masks(config, torch.device("cuda"))

    with ExitStack() as patches:
        for module, name, value in (
            (attention_mask, "takes_block_masks", takes),
            (probe_checks, "takes_block_masks", takes),
            (torch_flex, "_validate_device", lambda *tensors: None),
            (torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
            (
                transformers_flex,
                "compile_friendly_flex_attention",
                lambda query, key, value, training, **more: flex(query, key, value, **more),
            ),
        ):
            patches.enter_context(patch.object(module, name, value))
        yield


@settings(max_examples=40)
@given(
    st.lists(samples, min_size=1, max_size=4),
    st.sampled_from(GENERATION_MODES),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([None, 1, 4]),
)
def test_a_block_mask_has_the_rule_of_the_dense_mask(samples_, generation_mode, num_queries, packing, window):
    positions = row_positions(batch_of(samples_, generation_mode, num_queries, packing), generation_mode)
    blocks = block_mask(positions, positions, window)
    assert blocks.shape == (len(positions.order), 1, *[positions.order.shape[1]] * 2)
    rendered = create_mask(blocks.mask_mod, len(positions.order), 1, *blocks.shape[2:], device="cpu")
    assert torch.equal(rendered[:, 0], dense_mask(positions, positions, window))


@pytest.mark.parametrize("window", [None, 200])
def test_blocks_that_the_rule_forbids_are_left_out(window):
    # Three samples of 300 positions in a row of 900, which has 8 x 8 blocks of 128 x 128.
    order = torch.arange(900)[None]
    positions = attention_mask.TokenPositions(order, order // 300, torch.full_like(order, -1))
    blocks = block_mask(positions, positions, window)
    dense = torch.zeros(1024, 1024, dtype=torch.bool)
    dense[:900, :900] = dense_mask(positions, positions, window)
    allowed = dense.unflatten(0, (8, 128)).unflatten(2, (8, 128)).any(dim=3).any(dim=1)
    assert torch.equal(blocks.to_dense()[0, 0].bool(), allowed)
    assert allowed.sum() <= 20, "of 36 that causal attention has"


def forms(make, samples_, autocast=False, **settings):
    """Return losses and gradients with SDPA and dense masks, and those with block masks, and the latter's masks."""
    dense, video_llm = (make(attention=attention, **settings) for attention in ("sdpa", "auto"))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = losses_and_gradients(dense, samples_)
        with blocks_on_cpu():
            batch = video_llm.sequences(samples_)
            clips = video_llm.normalise(features(num_clips(*samples_)), batch.num_clips)
            embeds = video_llm.embed(batch, clips)
            mask = batch_mask(video_llm.causal_lm.config, batch, settings["generation_mode"], embeds)
            return expected, losses_and_gradients(video_llm, samples_), mask


def check_equal(expected, found, rounding=1e-6):
    (output, gradients), (output_of_blocks, gradients_of_blocks) = expected, found
    for name in ("text_loss", "head_loss"):
        one, other = getattr(output_of_blocks, name), getattr(output, name)
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)
    assert gradients.keys() == gradients_of_blocks.keys()
    for name, gradient in gradients.items():
        scale = 10 * rounding * gradient.abs().max().item() + 1e-9
        torch.testing.assert_close(gradients_of_blocks[name], gradient, rtol=0, atol=scale, msg=name.__add__)


WINDOWED_LAYER = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
@pytest.mark.parametrize(
    ("model", "language_model"),
    [("llama", {}), ("mistral", {"sliding_window": 6}), ("qwen2", WINDOWED_LAYER)],
    ids=["llama", "mistral with window", "qwen2 with one windowed layer"],
)
def test_block_masks_give_the_losses_and_gradients_of_dense_masks(
    make, model, language_model, generation_mode, packing
):
    expected, found, mask = forms(
        make,
        MIXED,
        model=model,
        language_model={**WIDE, **language_model},
        generation_mode=generation_mode,
        packing=packing,
    )
    if not packing and generation_mode != "query_bidirectional":
        assert mask is None, "the causal flag is enough"
    else:
        assert all(isinstance(each, BlockMask) for each in (mask.values() if isinstance(mask, dict) else [mask]))
    check_equal(expected, found)


@pytest.mark.parametrize("settings", [{"lora": LORA}, {"gradient_checkpointing": True}], ids=str)
def test_block_masks_with_other_configs(make, settings):
    mode = "query_bidirectional"
    expected, found, _ = forms(make, MIXED, language_model=WIDE, generation_mode=mode, packing=True, **settings)
    check_equal(expected, found)


def test_block_masks_in_layers_that_are_compiled_under_autocast(make):
    torch._dynamo.reset()
    settings = {"language_model": WIDE, "generation_mode": "query_bidirectional", "packing": True}
    eager, compiled = (make(attention="auto", **settings) for _ in range(2))
    for layer in compiled.causal_lm.base_model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    with blocks_on_cpu(), torch.autocast("cpu", torch.bfloat16):
        check_equal(losses_and_gradients(eager, MIXED), losses_and_gradients(compiled, MIXED), rounding=0.005)


def test_block_masks_under_autocast(make):
    # Rotary positions leave queries and keys in float32 beside values in bfloat16.
    settings = {"language_model": WIDE, "generation_mode": "query_bidirectional", "packing": True}
    exact, _ = losses_and_gradients(make(attention="sdpa", **settings), MIXED)
    (dense, _), (blocks, _), _ = forms(make, MIXED, autocast=True, **settings)
    for name in ("text_loss", "head_loss"):
        true, rounded, found = (getattr(output, name).item() for output in (exact, dense, blocks))
        assert found == pytest.approx(true, abs=2 * abs(rounded - true) + 1e-2)


def test_on_a_cpu_auto_has_the_bits_of_sdpa_for_clips_to_generate(make):
    for packing in (False, True):
        settings = {"language_model": WIDE, "packing": packing}
        (expected, gradients), (found, found_gradients) = (
            losses_and_gradients(make(attention=attention, **settings), MIXED) for attention in ("sdpa", "auto")
        )
        assert (expected.text_loss, expected.head_loss) == (found.text_loss, found.head_loss)
        assert all(torch.equal(gradient, found_gradients[name]) for name, gradient in gradients.items())


def test_text_and_clips_are_generated_alike_with_block_masks(make):
    prompts = [GENERATE[:1], [*READ[:1], *WORDS]]
    plain, blocks = (make(attention=attention, language_model=WIDE) for attention in ("sdpa", "auto"))
    expected = plain.generate_text(prompts, features(1), max_new_tokens=5)
    with blocks_on_cpu():
        assert blocks.generate_text(prompts, features(1), max_new_tokens=5) == expected


@pytest.mark.parametrize("name", [*FITTING, *FITTING_EAGER])
def test_auto_takes_what_a_model_has_and_the_model_fits(name):
    changes = {**FITTING, **FITTING_EAGER}[name]
    wide = {"head_dim": 16} if "head_dim" in changes else {}
    config = {"model_type": name, **SIZES, "hidden_size": 64, **changes, **wide}
    if name in ("gpt2", "gptj"):
        config |= {"n_embd": 64}
    torch.manual_seed(0)
    model = language_model_from_config(config, "auto")
    taken = model.config._attn_implementation
    if name in FITTING_EAGER:
        assert taken == "eager"
    with blocks_on_cpu():
        for generation_mode in ("query_bidirectional", "query_causal"):
            probe_language_model(model, generation_mode)


LLAMA = {"model_type": "llama", **SIZES, "hidden_size": 64}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**LLAMA, "attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({**LLAMA, "hidden_size": 32}, "width of 8"),
        ({"model_type": "gpt_oss", **SIZES, **FITTING_EAGER["gpt_oss"]}, "does not have both"),
        (LLAMA, "no CUDA device"),
    ],
    ids=["dropout", "narrow heads", "attention sinks", "cpu"],
)
def test_flex_is_refused_with_the_reason_and_auto_works(config, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: reason != "no CUDA device")
    with pytest.raises(UserError, match=reason) as refused:
        language_model_from_config(config, "flex")
    assert "llm.attention to auto" in str(refused.value)
    chosen = language_model_from_config(config, "auto").config._attn_implementation
    assert (chosen == SDPA_OR_FLEX) == (reason == "no CUDA device")


def test_a_run_that_was_trained_with_flex_is_used_on_a_cpu_with_dense_masks(make, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        trained = make(attention="flex", language_model=WIDE)
    save_component(trained, tmp_path / "video_llm")
    loaded = load_component(tmp_path / "video_llm", VideoLLM)
    assert loaded.config.attention == "flex"
    output, found = (losses(model.eval(), MIXED, features(num_clips(*MIXED))) for model in (trained, loaded))
    assert torch.equal(output.text_loss, found.text_loss)


def test_a_model_that_ignores_block_masks_is_refused_by_the_probe(monkeypatch):
    model = language_model_from_config(LLAMA, "auto")

    def ignore(module, query, key, value, attention_mask, **more):
        return real(module, query, key, value, None, **more)

    real = block_attention.sdpa_or_flex
    monkeypatch.setitem(block_attention.AttentionInterface._global_mapping, SDPA_OR_FLEX, ignore)
    with blocks_on_cpu(), pytest.raises(UserError, match="does not obey our attention masks"):
        probe_language_model(model, "query_bidirectional")


def test_other_shapes_do_not_compile_again_and_again_also_while_operations_are_counted():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    layer, counts = torch.nn.Module().eval(), []
    shapes = [(2, 37), (3, 50), (1, 60), (2, 300), (3, 260), (1, 290), *((2, 40 * blocks) for blocks in range(1, 9))]
    flex = torch.compile(torch_flex.flex_attention, backend=counter)
    with blocks_on_cpu(flex), torch.no_grad(), FlopCounterMode(display=False):
        for rows, length in shapes:
            order = torch.arange(length).expand(rows, -1)
            positions = attention_mask.TokenPositions(order, order // 30, torch.full_like(order, -1))
            states = [torch.randn(rows, 2, length, 16)] * 3
            block_attention.sdpa_or_flex(layer, *states, block_mask(positions, positions))
            counts.append(counter.frame_count)
    assert counts[-1] == counts[5], "after one row and several, one block and several, nothing is new"
    assert 0 < counts[-1] < RECOMPILE_LIMIT / 4


class Opaque(torch.autograd.Function):
    """Stands for a compiled kernel: a counter of operations sees nothing of it."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query)
        return query.detach().transpose(1, 2).clone()

    @staticmethod
    def backward(ctx, gradient):
        assert len(ctx.saved_tensors) == 1, "which makes a checkpoint compute it again"
        return gradient.transpose(1, 2), None, None


def test_operations_of_compiled_attention_are_counted_as_torch_counts_those_of_sdpa(monkeypatch):
    monkeypatch.setattr(
        block_attention, "flex_attention_forward", lambda module, *states, **more: (Opaque.apply(*states[:3]), None)
    )
    order = torch.arange(20)[None]
    positions = attention_mask.TokenPositions(order, 0 * order, 0 * order - 1)
    query, key, value = (torch.randn(1, heads, 20, 16, requires_grad=True) for heads in (4, 2, 2))
    arguments = (torch.nn.Module(), query, key, value, block_mask(positions, positions))
    forward = sdpa_flop_count(query.shape, key.shape, value.shape)
    backward = sdpa_backward_flop_count(query.shape, query.shape, *[(1, 4, 20, 16)] * 2)
    for attend, forwards in ((block_attention.sdpa_or_flex, 1), (recomputed, 2)):
        with FlopCounterMode(display=False) as counter:
            attend(*arguments)[0].sum().backward()
        assert counter.get_total_flops() == forwards * forward + backward


def recomputed(*arguments):
    with set_checkpoint_early_stop(False):  # a layer continues after its attention
        return checkpoint(block_attention.sdpa_or_flex, *arguments, use_reentrant=False)
