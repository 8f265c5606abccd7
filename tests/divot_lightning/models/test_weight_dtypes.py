"""Trained weights are float32, whatever dtype a checkpoint has; adapters are merged without rounding."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from divot_heads.mse import MSEHead
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.models.weight_dtypes import HALF, raise_to_float32
from divot_lightning.models.weights import held_by
from tests.divot_lightning.models.video_llm.tiny_video_llm import GENERATE, READ, TINY, C, Q, features, losses

LORA = LoRAConfig(rank=2, alpha=4, dropout=0.0, train_embeddings=True)


@pytest.fixture
def pretrained(tmp_path, text_tokenizer):
    """Return folders of one model in both dtypes: the float32 one has the values of the bfloat16 one."""
    tokenizer = AutoTokenizer.from_pretrained(text_tokenizer)
    torch.manual_seed(3)
    config = AutoConfig.for_model("llama", **TINY, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    folders = {}
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        folders[name] = str(tmp_path / name)
        model.to(dtype).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def build(folder, **changes):
    torch.manual_seed(0)
    return VideoLLM(VideoLLMConfig(language_model=folder, num_queries=Q, feature_dim=C, **changes), MSEHead)


def train(video_llm, steps=5, lr=1e-4):
    before = {name: value.detach().clone() for name, value in video_llm.named_parameters()}
    optimizer = torch.optim.AdamW((value for value in video_llm.parameters() if value.requires_grad), lr=lr)
    for _ in range(steps):
        output = losses(video_llm, [READ, GENERATE], features(2))
        (output.text_loss + output.head_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return before


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
def test_a_bfloat16_checkpoint_trains_as_a_float32_one(pretrained, lora):
    models = {name: build(folder, lora=lora) for name, folder in pretrained.items()}
    before = {name: train(video_llm) for name, video_llm in models.items()}
    one, other = (dict(models[name].named_parameters()) for name in ("bf16", "float32"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    norms = [name for name, value in one.items() if "norm" in name and value.requires_grad]
    assert len(norms) == 5
    assert all(bool((one[name] != before["bf16"][name]).all()) for name in norms)


def test_frozen_weights_stay_as_they_are_stored_where_the_config_says_so(pretrained, tmp_path):
    video_llm = build(pretrained["bf16"], lora=LORA, frozen_dtype="stored")
    for name, value in video_llm.named_parameters():
        frozen_half = not value.requires_grad and "language_model" in name
        assert value.dtype == (torch.bfloat16 if frozen_half else torch.float32), name
    with torch.autocast("cpu", torch.bfloat16):
        train(video_llm, steps=2)
    save_component(video_llm, tmp_path / "video_llm")
    loaded = load_component(tmp_path / "video_llm", VideoLLM)
    for (name, value), (_, expected) in zip(loaded.named_parameters(), video_llm.named_parameters(), strict=True):
        assert value.dtype == expected.dtype, name
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("frozen_dtype", ["float32", "stored"])
def test_adapters_of_a_bfloat16_checkpoint_are_merged_and_stored_without_rounding(pretrained, tmp_path, frozen_dtype):
    video_llm = build(pretrained["bf16"], lora=LORA, frozen_dtype=frozen_dtype)
    expected = {}
    for name, layer in video_llm.language_model.named_modules():
        if hasattr(layer, "lora_A"):
            for part in (layer.lora_A, layer.lora_B):
                torch.nn.init.normal_(part["default"].weight, std=0.01)
            weight, first, second = (
                each.weight.detach().double()
                for each in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
            )
            expected[name.removeprefix("base_model.model.")] = (weight, layer.scaling["default"] * (second @ first))
    save_component(video_llm, tmp_path / "adapted")
    between = load_component(tmp_path / "adapted", VideoLLM)
    between.merge_lora()
    save_component(between, tmp_path / "merged")
    merged = load_component(tmp_path / "merged", VideoLLM)
    assert len(expected) == 14
    for name, (weight, delta) in expected.items():
        found = merged.causal_lm.get_submodule(name).weight
        error = (found.double() - weight - delta).norm() / delta.norm()
        assert float(error) < 1e-4, (name, error)  # in bfloat16 it is 0.1
        rounded = ((weight + delta).bfloat16().double() - weight - delta).norm() / delta.norm()
        assert float(rounded) > 0.05  # what the test would see


def test_a_model_from_a_bfloat16_checkpoint_is_loaded_as_exactly_as_it_was_trained(pretrained, tmp_path):
    video_llm = build(pretrained["bf16"])
    train(video_llm)
    save_component(video_llm, tmp_path / "video_llm")
    loaded = load_component(tmp_path / "video_llm", VideoLLM)
    for (name, value), (_, expected) in zip(loaded.named_parameters(), video_llm.named_parameters(), strict=True):
        assert torch.equal(value, expected), name
    used = loaded.use_stored_precision()
    assert {value.dtype for value in used.language_model.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in used.head.parameters()} == {torch.float32}
    assert used.eval().generate_features([GENERATE]).isfinite().all()


def test_an_optimizer_with_float32_copies_gets_the_weights_as_they_are_stored(pretrained):
    with held_by(None, masters=True):
        video_llm = build(pretrained["bf16"])
    assert {value.dtype for value in video_llm.language_model.parameters()} == {torch.bfloat16}
    with held_by(None, masters=False):
        assert not any(value.dtype in HALF for value in build(pretrained["bf16"]).parameters())


def test_only_trained_weights_become_float32():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).bfloat16()
    module[1].requires_grad_(False)
    raise_to_float32(module)
    assert (module[0].weight.dtype, module[1].weight.dtype) == (torch.float32, torch.bfloat16)
