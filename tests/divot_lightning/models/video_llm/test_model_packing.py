from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch

from divot_heads.diffusion import DiffusionHead
from divot_heads.gmm import GMMHead
from divot_lightning.models.video_llm import model
from divot_lightning.models.video_llm.attention_mask import batch_mask
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sequences.tokens import TokenKind
from tests.divot_lightning.models.video_llm.tiny_video_llm import (
    GENERATE,
    GENERATION_MODES,
    LORA,
    READ,
    STORY,
    WORDS,
    features,
    losses,
    num_clips,
)

LONG = [Text("a red circle moves right " * 5, learn=False), *STORY, Clips(1, "read"), Text("what ?", learn=True)]
SHORT = [Text("left", learn=True)]
MIXED = [READ, LONG, GENERATE, WORDS, STORY, SHORT, GENERATE, SHORT]
GRADIENT_SCALE = 1e-5
"""Largest difference that rounding in float32 may make, as a fraction of the largest gradient of a weight."""


def losses_and_gradients(video_llm, samples, seed=0):
    torch.manual_seed(seed)
    output = losses(video_llm.train(), samples, features(num_clips(*samples)))
    (output.text_loss + output.head_loss).backward()
    gradients = {name: value.grad for name, value in video_llm.named_parameters() if value.requires_grad}
    return output, gradients


def check_packed_equals_unpacked(make, samples=MIXED, **settings):
    plain, packed = (make(packing=packing, **settings) for packing in (False, True))
    assert not plain.sequences(samples).packed
    assert packed.sequences(samples).packed
    (expected, expected_gradients), (output, gradients) = (losses_and_gradients(m, samples) for m in (plain, packed))
    assert output.num_text_targets == expected.num_text_targets
    assert output.num_generated_clips == expected.num_generated_clips
    torch.testing.assert_close(output.text_loss, expected.text_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.head_loss, expected.head_loss, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = GRADIENT_SCALE * gradient.abs().max().item()
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=scale + 1e-9, msg=name.__add__)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", ["llama", "mistral"])
@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_packed_equals_unpacked_loss_and_gradients(make, generation_mode, model, attention):
    window = {"sliding_window": 6} if model == "mistral" else {}
    check_packed_equals_unpacked(
        make, generation_mode=generation_mode, model=model, attention=attention, language_model=window
    )


READING = [READ, WORDS, [*READ, *WORDS], SHORT, READ, [*WORDS, *READ], SHORT]


@pytest.mark.parametrize(
    ("generation_mode", "samples", "settings"),
    [
        ("query_bidirectional", READING, {}),
        ("query_causal", MIXED, {}),
        ("autoregressive", MIXED, {"gradient_checkpointing": True}),
        ("query_causal", MIXED, {"lora": LORA}),
    ],
    ids=["reading", "query_causal", "autoregressive", "lora"],
)
def test_on_a_cpu_causal_samples_of_a_row_attend_one_by_one(make, generation_mode, samples, settings):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    forms = []

    def noted(*arguments):
        forms.append(batch_mask(*arguments))
        return forms[-1]

    with patch.object(model, "batch_mask", noted):
        check_packed_equals_unpacked(
            make, samples, attention="auto", generation_mode=generation_mode, language_model=heads, **settings
        )
    assert [None if form is None else form.dtype for form in forms] == [None, torch.int64]


ABSOLUTE_POSITIONS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOWED_LAYER = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": LORA},
        {"gradient_checkpointing": True},
        {"model": "qwen2", "language_model": WINDOWED_LAYER},
        {"model": "gpt2", "language_model": ABSOLUTE_POSITIONS, "max_length": 256},
        {"max_length": 60},
        {"freeze_language_model": True},
    ],
    ids=str,
)
def test_packed_equals_unpacked_with_other_configs(make, settings):
    check_packed_equals_unpacked(make, **settings)


@pytest.mark.parametrize("samples", [[LONG, WORDS, SHORT], [LONG, READ, SHORT], [STORY, GENERATE, GENERATE, GENERATE]])
def test_packed_equals_unpacked_for_batches_of_one_task(make, samples):
    check_packed_equals_unpacked(make, samples)


@pytest.mark.parametrize("head", [DiffusionHead, partial(GMMHead, num_components=2)])
def test_a_head_that_draws_noise_draws_the_same_when_packed(make, head):
    check_packed_equals_unpacked(make, head=head)


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_a_packed_sample_has_the_hidden_states_it_has_alone(make, generation_mode):
    video_llm, clips = make(generation_mode=generation_mode, packing=True), features(num_clips(*MIXED))
    batch = video_llm.sequences(MIXED)
    hidden_BLD = video_llm.hidden_states(batch, video_llm.embed(batch, clips))
    first_clip = 0
    for number, sample in enumerate(MIXED):
        own = clips[first_clip : first_clip + num_clips(sample)]
        first_clip += num_clips(sample)
        alone = video_llm.sequences([sample])
        expected_LD = video_llm.hidden_states(alone, video_llm.embed(alone, own))[0]
        torch.testing.assert_close(hidden_BLD[batch.samples_BL == number], expected_LD, atol=1e-5, rtol=1e-4)


def test_the_first_word_of_a_packed_sample_is_no_target(make):
    packed, plain = make(packing=True), make()
    for video_llm in (packed, plain):
        video_llm.special = replace(video_llm.special, begin=None)
    samples = [LONG, SHORT, WORDS]
    starts = packed.sequences(samples)
    assert starts.packed
    assert ((starts.position_ids_BL == 0) & (starts.labels_BL >= 0)).sum() == 2
    expected, output = losses(plain, samples, features(4)), losses(packed, samples, features(4))
    assert output.num_text_targets == expected.num_text_targets == (3 + 5 + 2 + 1) + (1 + 1 - 1) + (5 + 1 - 1)
    torch.testing.assert_close(output.text_loss, expected.text_loss, rtol=1e-6, atol=1e-6)


def test_packing_leaves_less_padding(make):
    plain, packed = (make(packing=packing).sequences(MIXED).token_kind_BL for packing in (False, True))
    assert (packed != TokenKind.PAD).sum() == (plain != TokenKind.PAD).sum()
    assert packed.numel() < 0.7 * plain.numel()


def test_without_packing_a_batch_is_as_long_as_its_longest_sample(make):
    video_llm = make(max_length=1400)
    longest = max(video_llm.sequences([sample]).ids_BL.shape[1] for sample in MIXED)
    assert video_llm.sequences(MIXED).ids_BL.shape == (len(MIXED), longest)


def test_rows_of_several_samples_keep_to_max_length(make):
    video_llm = make(packing=True, max_length=90)
    batch = video_llm.sequences([LONG, *[WORDS] * 30])
    assert batch.packed
    assert batch.ids_BL.shape[1] <= 90


def test_prompts_are_never_packed(make):
    video_llm = make(packing=True)
    assert len(video_llm.sequences(MIXED, prompt=True).ids_BL) == len(MIXED)
    prompts = [LONG[:1], [Text("a", False)]]
    together = video_llm.generate_text(prompts, None, max_new_tokens=4)
    assert together == [video_llm.generate_text([prompt], None, max_new_tokens=4)[0] for prompt in prompts]


@pytest.mark.parametrize("packing", [False, True])
def test_counts_are_those_of_the_samples(make, packing):
    video_llm, samples = make(packing=packing), [STORY, READ, WORDS, GENERATE]
    batch, output = video_llm.sequences(samples), losses(video_llm, samples, features(5))
    assert batch.num_generated_clips == output.num_generated_clips == 3 + 1
    assert batch.num_text_targets == output.num_text_targets == (3 + 5 + 1) + (5 + 1) + (5 + 1) + (2 + 1)
    assert batch.num_tokens == sum(video_llm.sequences([sample]).num_tokens for sample in samples)


def test_a_batch_without_samples_has_no_targets(make):
    output, gradients = losses_and_gradients(make(packing=True), [])
    assert (output.text_loss, output.head_loss) == (0, 0)
    assert (output.num_text_targets, output.num_generated_clips) == (0, 0)
    assert all((gradient == 0).all() for gradient in gradients.values())


def called_modules(video_llm, batches):
    """Return, by batch, names of modules with parameters in the order of their calls in forward and backward pass."""
    calls, found = [], []

    def watch(name, module):
        def after_forward(_, args, output):
            calls.append(("forward", name))
            if output.requires_grad:
                output.register_hook(lambda gradient: calls.append(("backward", name)))

        module.register_forward_hook(after_forward)

    for name, module in video_llm.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            watch(name, module)
    for samples in batches:
        losses_and_gradients(video_llm, samples)
        found.append(calls.copy())
        calls.clear()
    return found


@pytest.mark.parametrize(
    "settings", [{"lora": LORA}, {"gradient_checkpointing": True}, {"freeze_language_model": True}]
)
@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_every_batch_calls_the_same_modules_in_the_same_order(make, generation_mode, settings):
    batches = [[WORDS], [READ], [GENERATE], MIXED, []]
    calls = [
        called
        for packing in (False, True)
        for called in called_modules(make(generation_mode=generation_mode, packing=packing, **settings), batches)
    ]
    assert {name.split(".")[0] for _, name in calls[0]} == {"queries", "input_projector", "head", "language_model"}
    assert {direction for direction, _ in calls[0]} == {"forward", "backward"}
    assert all(called == calls[0] for called in calls)
