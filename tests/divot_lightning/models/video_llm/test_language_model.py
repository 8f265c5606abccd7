import io
import json
import logging

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.mse import MSEHead
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.building import initial_queries
from divot_lightning.models.video_llm.language_model import (
    initialise_new_rows,
    load_language_model,
    vocabulary_size,
    word_embeddings,
)
from divot_lightning.models.video_llm.lora import (
    LoRAConfig,
    add_lora,
    layers_without_adapters,
    linear_layers,
    merge_lora,
    unwrap,
)
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).eval()


def test_only_missing_marker_tokens_are_new(tmp_path):
    tokenizer = word_level_tokenizer(["a b"])
    tokenizer.save_pretrained(tmp_path)
    assert load_text_tokenizer(tmp_path)[1] == []
    loaded, _ = load_text_tokenizer(tmp_path)
    assert vocabulary_size(loaded) == len(loaded)
    assert len({loaded.convert_tokens_to_ids(name) for name in SPECIAL_TOKEN_NAMES}) == len(SPECIAL_TOKEN_NAMES)


def test_new_rows_are_the_mean_of_the_others(model):
    old = word_embeddings(model).detach().clone()
    initialise_new_rows(model, [8, 9])
    torch.testing.assert_close(word_embeddings(model)[8:], old[:8].mean(dim=0).expand(2, -1))
    assert torch.equal(word_embeddings(model)[:8], old[:8])


@pytest.mark.parametrize("tied", [False, True])
def test_initial_values_of_the_released_code_are_a_setting(tmp_path, tied):
    tokenizer = word_level_tokenizer(["a b"])
    words = [word for word in tokenizer.get_vocab() if word not in SPECIAL_TOKEN_NAMES]
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
        ),
        bos_token="<s>",
        eos_token="</s>",
    )
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(words), "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    model.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    given = {"language_model": str(tmp_path), "num_queries": 3, "feature_dim": 5}
    built = VideoLLM(VideoLLMConfig(initial_values="released", **given), MSEHead)
    new = [built.text_tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKEN_NAMES]
    words_mean, output_mean = (
        sum(layer.weight[row].detach() for row in range(len(words))) / len(words)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    factor = 1.0 if tied else 3.0
    torch.testing.assert_close(built.queries.weight_QD.detach(), words_mean.expand(3, -1))
    torch.testing.assert_close(built.causal_lm.get_input_embeddings().weight[new].detach(), words_mean.expand(6, -1))
    torch.testing.assert_close(built.causal_lm.lm_head.weight[new].detach(), factor * output_mean.expand(6, -1))


def test_fresh_adapters_change_nothing(model):
    ids = torch.arange(10)[None]
    before = model(ids).logits
    adapted = add_lora(model, LoRAConfig(rank=2, dropout=0.0), [3, 5])
    torch.testing.assert_close(unwrap(adapted)(ids).logits, before)
    assert unwrap(model) is model


def test_merging_keeps_the_trained_rows(model):
    old = word_embeddings(model).detach().clone()
    adapted = add_lora(model, LoRAConfig(rank=2, dropout=0.0), [3, 5])
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "embed_tokens" in name and "trainable_tokens_delta" in name:
                value += 1.0
    merged = word_embeddings(merge_lora(adapted))
    assert ((merged - old).abs().sum(dim=1) > 0).nonzero()[:, 0].tolist() == [3, 5]


@pytest.mark.parametrize("load", [load_text_tokenizer, lambda folder: load_language_model(str(folder), 8, [], "sdpa")])
def test_code_that_comes_with_a_tokenizer_or_model_is_neither_run_nor_asked_about(tmp_path, monkeypatch, load):
    (tmp_path / "evt.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    evil = {"AutoTokenizer": ["evt.Evil", None], "AutoConfig": "evt.Evil", "AutoModelForCausalLM": "evt.Evil"}
    tokenizer = {"tokenizer_class": "Evil", "auto_map": evil}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": evil}))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question is asked"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)
    assert not (tmp_path / "was-run").exists()


TINY = {**SIZES, "intermediate_size": 24, "vocab_size": 30, "pad_token_id": 0}


RELEASED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("name", "changes", "layers", "left"),
    [
        ("llama", {}, RELEASED, []),
        ("mistral", {}, RELEASED, []),
        ("qwen3", {}, RELEASED, []),
        ("phi3", {}, ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"], []),
        ("phi", {}, ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"], []),
        ("starcoder2", {}, ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"], []),
        ("gpt2", {}, ["c_attn", "c_proj", "c_fc"], []),
        ("mixtral", {"num_local_experts": 2}, RELEASED[:4], ["experts.down_proj", "experts.gate_up_proj"]),
    ],
)
def test_by_default_all_linear_layers_of_a_model_have_adapters(caplog, name, changes, layers, left):
    caplog.set_level(logging.INFO)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **TINY, **changes))
    assert linear_layers(model) == layers
    adapted = add_lora(model, LoRAConfig(rank=2, dropout=0.0), [3])
    assert layers_without_adapters(adapted) == left
    records = [record for record in caplog.records if record.name == add_lora.__module__]
    assert all(layer in records[0].getMessage() for layer in layers)
    warnings = [record.getMessage() for record in records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(left)
    assert all(kind in line for kind in left for line in warnings)


def test_layers_that_are_left_out_on_purpose_are_not_named(caplog, model):
    add_lora(model, LoRAConfig(rank=2, target_modules=["q_proj"]), [3])
    assert not caplog.records


def test_queries_have_the_scale_of_the_outputs_of_the_embedding_layer_at_first():
    config = AutoConfig.for_model("gemma3_text", **{**TINY, "hidden_size": 64, "head_dim": 8})
    model = AutoModelForCausalLM.from_config(config)
    words_VD = model.get_input_embeddings()(torch.arange(30)).detach()
    queries_QD = initial_queries(model, 256)
    assert float(queries_QD.std() / words_VD[1:].std()) == pytest.approx(1.0, abs=0.1)
    assert float(words_VD.std() / word_embeddings(model).detach().std()) == pytest.approx(8.0, abs=0.1)


def test_queries_of_a_model_without_embedding_scale_have_mean_and_spread_of_the_words(model):
    weight_VD = word_embeddings(model).detach()
    torch.manual_seed(4)
    queries_QD = initial_queries(model, 5)
    torch.manual_seed(4)
    assert torch.equal(queries_QD, weight_VD.mean(dim=0) + weight_VD.std(dim=0) * torch.randn(5, 16))
