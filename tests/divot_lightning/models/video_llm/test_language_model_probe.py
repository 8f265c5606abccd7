"""Language models that our loss or our masks do not fit are refused when they are built; those that fit are not."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from divot_lightning.errors import UserError
from divot_lightning.models.video_llm import language_model_probe
from divot_lightning.models.video_llm.language_model import language_model_from_config
from divot_lightning.models.video_llm.language_model_probe import probe_language_model
from divot_lightning.models.video_llm.position_limit import check_positions

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 48, "vocab_size": 61, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
LATENT |= {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
NO_CAP = {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None}

FITTING = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": LATENT,
    "olmo2": {},
    "smollm3": {},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4},
    "phi3": {},
    "phi": {},
    "stablelm": {},
    "starcoder2": {},
    "glm4": {"head_dim": 8},
    "granite": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "falcon": {"alibi": False},
}
FITTING_EAGER = {"gemma2": NO_CAP, "gptj": {**GPT, "rotary_dim": 4}, "gpt_oss": {"num_local_experts": 4, "head_dim": 8}}
MISFITS = {
    "modernbert-decoder": ({}, "sdpa", "its own next-word loss"),
    "bert": ({}, "sdpa", "its own next-word loss"),
    "roberta": ({}, "sdpa", "its own next-word loss"),
    "electra": ({"embedding_size": 32}, "sdpa", "does not obey|its own next-word loss"),
    "gpt_neo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
        "eager",
        "queries of a clip do not attend to each other",
    ),
    "ctrl": ({**GPT, "dff": 48}, "eager", "does not obey our attention masks"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4}, "eager", "does not obey our attention masks"),
    "rwkv": ({}, "eager", "does not obey our attention masks"),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, "sdpa", "fails on embeddings with one of our masks"),
    "bloom": ({"n_layer": 2, "n_head": 4}, "eager", "fails on embeddings with one of our masks"),
    "falcon_h1": ({}, "sdpa", "linear_attention|hybrid|types"),
    "mamba": ({}, "eager", "linear_attention|mamba"),
    "cohere": ({}, "sdpa", "its own next-word loss"),
}
HYBRIDS = {
    "qwen3_next": (
        {
            **EXPERTS,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 8,
            "shared_expert_intermediate_size": 16,
            **{f"linear_num_{part}_heads": 2 for part in ("key", "value")},
            **{f"linear_{part}_head_dim": 8 for part in ("key", "value")},
        },
        "linear_attention",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "conv"),
}


def build(name, changes, attention="sdpa"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("name", FITTING)
def test_models_that_fit_pass(name):
    for attention in ("sdpa", "eager"):
        for generation_mode in ("query_bidirectional", "query_causal"):
            probe_language_model(build(name, FITTING[name], attention), generation_mode)


@pytest.mark.parametrize("name", FITTING_EAGER)
def test_models_that_fit_with_eager_attention_pass_with_it_and_are_refused_without(name):
    probe_language_model(build(name, FITTING_EAGER[name], "eager"), "query_bidirectional")
    with pytest.raises(UserError, match=r"set llm\.attention to auto"):
        language_model_from_config({"model_type": name, **SIZES, **FITTING_EAGER[name]}, "sdpa")


@pytest.mark.parametrize("name", MISFITS)
def test_models_that_do_not_fit_are_refused_by_name(name):
    changes, attention, message = MISFITS[name]
    with pytest.raises(UserError, match=message) as refused:
        probe_language_model(build(name, changes, attention), "query_bidirectional")
    assert name.replace("-", "_") in str(refused.value).replace("-", "_")
    assert len(str(refused.value).splitlines()) <= 5


@pytest.mark.parametrize("generation_mode", ["query_bidirectional", "query_causal", "autoregressive"])
@pytest.mark.parametrize("name", HYBRIDS)
def test_models_with_layers_that_carry_a_state_are_refused_with_the_reason(name, generation_mode):
    changes, kind = HYBRIDS[name]
    with pytest.raises(UserError, match=rf"{kind}(?s:.)*carries a state") as refused:
        probe_language_model(build(name, changes), generation_mode)
    assert name in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 5


class Scaling(LlamaForCausalLM):
    """A model that scales its logits after the output layer by a setting of an unknown name."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **{**kwargs, "labels": None})
        output.logits = 0.5 * output.logits
        output.loss = torch.nn.functional.cross_entropy(output.logits[0, :-1], kwargs["labels"][0, 1:])
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_changed_after_the_output_layer_are_found_in_any_precision(dtype):
    config = build("llama", {}).config
    probe_language_model(LlamaForCausalLM(config).to(dtype), "query_bidirectional")
    with pytest.raises(UserError, match="its own next-word loss"):
        probe_language_model(Scaling(config).to(dtype), "query_bidirectional")


def test_a_deep_model_in_bfloat16_passes():
    model = build("llama", {"num_hidden_layers": 24}).bfloat16()
    probe_language_model(model, "query_bidirectional")


def test_the_model_and_random_states_are_unchanged_afterwards():
    model = build("llama", {"attention_dropout": 0.5}).train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    probe_language_model(model, "query_bidirectional")
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_model_on_the_meta_device_is_not_tested():
    with torch.device("meta"):
        model = build("gpt_neo", MISFITS["gpt_neo"][0], "eager")
    probe_language_model(model, "query_bidirectional")


def test_in_place_of_a_sharded_model_one_with_few_layers_is_tested(monkeypatch):
    monkeypatch.setattr(language_model_probe, "has_shards", lambda module: True)
    tested = []
    find = language_model_probe.find_misfit
    monkeypatch.setattr(
        language_model_probe,
        "find_misfit",
        lambda model, generation_mode: tested.append(model) or find(model, generation_mode),
    )
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    probe_language_model(
        build("gemma3_text", {"num_hidden_layers": 6, "layer_types": [*kinds, *kinds[:2]], "head_dim": 8}),
        "query_bidirectional",
    )
    assert [len(model.model.layers) for model in tested] == [4]
    with pytest.raises(UserError, match="queries of a clip do not attend to each other"):
        probe_language_model(build("gpt_neo", MISFITS["gpt_neo"][0], "eager"), "query_bidirectional")


@pytest.mark.parametrize(("name", "changes"), [("gpt2", {**GPT, "n_positions": 32}), ("gptj", {"n_positions": 32})])
def test_sequences_beyond_learned_positions_are_refused(name, changes):
    model = build(name, {**GPT, "rotary_dim": 4, **changes}, "eager")
    check_positions(model, 32)
    check_positions(model, None)
    with pytest.raises(UserError, match=r"max_length is 33.*max_position_embeddings=32"):
        check_positions(model, 33)
    with pytest.raises((IndexError, RuntimeError)):  # without the check
        model(torch.zeros(1, 33, dtype=torch.int64))


def test_sequences_beyond_the_known_positions_of_a_rotary_model_give_a_warning(caplog):
    model = build("llama", {"max_position_embeddings": 32})
    check_positions(model, 32)
    assert not caplog.records
    check_positions(model, 33)
    assert "max_position_embeddings=32" in caplog.text
