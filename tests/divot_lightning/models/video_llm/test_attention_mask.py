import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.attention_mask import (
    TokenPositions,
    additive_mask,
    dense_mask,
    row_positions,
    sliding_window,
    transformers_mask,
)
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sequences.layout import SequenceLayout, build_sequence
from divot_lightning.parts.sequences.row_packing import pack_rows
from divot_lightning.parts.sequences.rows import collate_sequences
from divot_lightning.parts.sequences.tokens import TokenKind
from tests.divot_lightning.parts.sequences.test_layout import GENERATION_MODES, SPECIAL, encode, samples


def batch_of(samples_, generation_mode, num_queries=2, packing=False):
    layout = SequenceLayout(num_queries, generation_mode)
    built = [build_sequence(sample, encode, SPECIAL, layout) for sample in samples_]
    lengths = [len(sequence.ids) for sequence in built]
    return collate_sequences(built, pad_id=0, rows=pack_rows(lengths, None, width=8) if packing else None)


def mask_of(batch, generation_mode):
    positions = row_positions(batch, generation_mode)
    return dense_mask(positions, positions)


def attends(positions, generation_mode, query, key):
    """Return the rule for one pair of positions, each (kind, clip, sample)."""
    if query == key:
        return True
    (kind, clip, sample), (key_kind, key_clip, key_sample) = positions[query], positions[key]
    if key_kind == TokenKind.PAD or key_sample != sample:
        return False
    if generation_mode == "query_bidirectional" and kind == key_kind == TokenKind.QUERY and clip == key_clip:
        return True
    return key < query


@given(st.lists(samples, min_size=1, max_size=5), st.sampled_from(GENERATION_MODES), st.integers(1, 3), st.booleans())
def test_every_pair_equals_the_rule(samples_, generation_mode, num_queries, packing):
    batch = batch_of(samples_, generation_mode, num_queries, packing)
    mask_BLL = mask_of(batch, generation_mode)
    length = batch.token_kind_BL.shape[1]
    rows = zip(batch.token_kind_BL.tolist(), batch.clips_BL.tolist(), batch.samples_BL.tolist(), strict=True)
    for row, columns in enumerate(rows):
        positions = list(zip(*columns, strict=True))
        expected = [[attends(positions, generation_mode, q, k) for k in range(length)] for q in range(length)]
        assert mask_BLL[row].tolist() == expected


def test_rows_without_any_key_give_finite_attention():
    mask = additive_mask(torch.zeros(1, 1, 3, dtype=torch.bool), torch.bfloat16)
    assert mask.shape == (1, 1, 1, 3)
    assert mask.dtype == torch.bfloat16
    assert mask.softmax(dim=-1).isfinite().all()


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 4,
}
MODELS = {
    "llama": {"model_type": "llama"},
    "mistral with window": {"model_type": "mistral", "sliding_window": 4},
    "mistral without window": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen2 with one windowed layer": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
}


def influence(model, mask, length):
    """Return which inputs each hidden state depends on, by differentiation of a random sum of its numbers."""
    embeds, weights = torch.randn(1, length, 16, requires_grad=True), torch.randn(16)
    states = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    gradients = [torch.autograd.grad(state @ weights, embeds, retain_graph=True)[0] for state in states[0]]
    return torch.cat(gradients).abs().sum(dim=-1) > 0


def build(name, attention):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**SIZES, **MODELS[name])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def windows(name, length):
    """Return the window of each layer, as the configurations above say."""
    return {"mistral with window": [4, 4], "qwen2 with one windowed layer": [length, 4]}.get(name, [length] * 2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_unmodified_models_attend_exactly_where_the_mask_says(name, attention):
    model = build(name, attention)
    sample = [Text("1 2 3", False), Clips(1, "generate"), Text("4", True), Clips(1, "generate")]
    layout = SequenceLayout(3, "query_bidirectional")
    built = [build_sequence(part, encode, SPECIAL, layout) for part in (sample, [Text("5 6", True)])]
    batch = collate_sequences(built, pad_id=0, rows=[[0, 1]])
    mask_BLL, positions = mask_of(batch, "query_bidirectional"), row_positions(batch, "query_bidirectional")
    mask = transformers_mask(model.config, positions, positions, torch.float32)
    length = mask_BLL.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    reach = torch.eye(length)
    for window in windows(name, length):
        reach = ((mask_BLL[0] & (distance < window)).float() @ reach > 0).float()
    assert torch.equal(influence(model, mask, length), reach > 0)


def causal_positions(rows, length):
    order = torch.arange(length).expand(rows, -1)
    return TokenPositions(order, torch.zeros_like(order), torch.full_like(order, -1))


@pytest.mark.parametrize("name", MODELS)
def test_a_causal_mask_equals_the_models_own(name):
    embeds = torch.randn(2, 9, 16)
    for attention in ("sdpa", "eager"):
        model = build(name, attention)
        mask = transformers_mask(model.config, *[causal_positions(2, 9)] * 2, torch.float32)
        with torch.no_grad():
            ours = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
            own = model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)


def test_models_without_windowed_layers_have_no_window():
    assert sliding_window(AutoConfig.for_model("qwen2", sliding_window=8)) is None
    assert sliding_window(AutoConfig.for_model("mistral", sliding_window=8)) == 8


def test_an_attention_that_takes_no_mask_is_refused():
    config = AutoConfig.for_model("llama", attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match="flash_attention_2"):
        transformers_mask(config, *[causal_positions(1, 2)] * 2, torch.float32)


def test_layers_of_another_kind_are_refused():
    config = AutoConfig.for_model("llama4_text", num_hidden_layers=2)
    config._attn_implementation = "sdpa"
    with pytest.raises(UserError, match="chunked_attention"):
        transformers_mask(config, *[causal_positions(1, 2)] * 2, torch.float32)
