"""The released video LLM becomes a component folder: it computes what transformers and the recorded layers compute."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import MistralConfig, MistralForCausalLM

from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_heads.gmm_likelihood import split_gmm_params
from divot_lightning.checkpoint.components import load_component
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.generate import generate_clip_features
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.interop.import_detokenizer import import_detokenizer
from divot_lightning.interop.import_tokenizer import import_tokenizer
from divot_lightning.interop.import_video_llm import import_video_llm
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Clips, Text
from tests.divot_lightning.interop.test_import_tokenizer import config as tokenizer_config
from tests.divot_lightning.interop.test_import_tokenizer import openclip_vit
from tests.divot_lightning.interop.test_importing import config as detokenizer_config
from tests.divot_lightning.interop.test_importing import original_vae

DATA, DOCS = Path(__file__).parents[2] / "data", Path(__file__).parents[3] / "docs"
Q, C, K = 8, 16, 4
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_released(folder, dtype=torch.float32):
    """Write a tiny model in the released form; return the language model."""
    tokenizer = toy_text_tokenizer()
    tokenizer.add_tokens([f"<frame_{index:05d}>" for index in range(256)])
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    model = MistralForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder / "sft_gen" / "llm")
    (folder / "sft_gen" / "agent").mkdir()
    torch.save(load_file(DATA / "agent_state.safetensors"), folder / "sft_gen" / "agent" / "pytorch_model.bin")
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    return folder, write_released(folder)


@pytest.fixture
def released(written, tmp_path):
    """A copy of the released folder, which a test may damage, and the language model."""
    shutil.copytree(written[0], tmp_path / "released")
    return tmp_path / "released", written[1]


def project(name, values):
    """Apply a recorded projector: two layers with a GELU between them."""
    weights = {key: value.float() for key, value in load_file(DATA / "agent_state.safetensors").items()}
    hidden = functional.gelu(values @ weights[f"{name}.proj.0.weight"].T + weights[f"{name}.proj.0.bias"])
    return hidden @ weights[f"{name}.proj.2.weight"].T + weights[f"{name}.proj.2.bias"]


def expected_clip(model, tokenizer, caption):
    """Compute the expectation of a clip's features from the released layout, with transformers alone."""
    ids = tokenizer.convert_tokens_to_ids
    before = [
        tokenizer.bos_token_id,
        *tokenizer.encode(caption, add_special_tokens=False),
        ids("<vid>"),
        ids("<frame>"),
    ]
    queries = [ids(f"<frame_{index:05d}>") for index in range(Q)]
    length = len(before) + Q
    visible = torch.ones(length, length).tril().bool()
    visible[-Q:, -Q:] = True
    mask = torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    hidden = model.model(input_ids=torch.tensor([before + queries]), attention_mask=mask).last_hidden_state
    return expected_features(project("output_resampler", hidden[:, -Q:]))


def expected_features(params):
    means, _, logits = split_gmm_params(params, K)
    return torch.einsum("...k,...kc->...c", logits.softmax(dim=-1), means)


def gives_the_expected_clip(component, model):
    video_llm = load_component(component, VideoLLM).eval()
    caption = "a red circle moves left"
    batch = video_llm.sequences([[Text(caption, learn=False), Clips(1, "generate")]], prompt=True)
    hidden = video_llm.hidden_states(batch, video_llm.embed(batch, video_llm.normalise(torch.zeros(1, Q, C), 1)))
    actual = expected_features(video_llm.head.proj(hidden[:, -Q:]))
    expected = expected_clip(model, video_llm.text_tokenizer, caption)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    return video_llm


@torch.no_grad()
def test_generated_features_are_those_of_the_released_layout(released, tmp_path):
    folder, model = released
    done = import_video_llm(folder / "sft_gen", tmp_path / "run" / "video_llm", num_queries=Q)
    video_llm = gives_the_expected_clip(tmp_path / "run" / "video_llm", model)
    assert not done.ignored
    assert video_llm.config.head.init_args["num_components"] == K
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["video_llm"]


@torch.no_grad()
def test_next_words_after_a_clip_are_those_of_transformers(released, tmp_path):
    folder, model = released
    import_video_llm(folder / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    video_llm = load_component(tmp_path / "video_llm", VideoLLM).eval()
    features = load_file(DATA / "agent_io.safetensors")["features"][:1].float()
    loss = video_llm(video_llm.sequences([[Clips(1, "read"), Text("a red circle", learn=True)]]), features).text_loss
    tokenizer, embed = video_llm.text_tokenizer, model.get_input_embeddings()
    ids = tokenizer.convert_tokens_to_ids
    words = [*tokenizer.encode("a red circle", add_special_tokens=False), tokenizer.eos_token_id]
    before, after = ([tokenizer.bos_token_id, ids("<vid>"), ids("<frame>")], [ids("</frame>"), ids("</vid>"), *words])
    embedded = [embed(torch.tensor([before])), project("input_resampler", features), embed(torch.tensor([after]))]
    logits = model(inputs_embeds=torch.cat(embedded, dim=1)).logits[0]
    expected = functional.cross_entropy(logits[-len(words) - 1 : -1], torch.tensor(words))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)


def adapt(model, alpha):
    """Return adapters for all linear layers, a trained copy of a norm, and the model with them merged by hand."""
    merged, generator, adapters = MistralForCausalLM(model.config).eval(), torch.Generator().manual_seed(1), {}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in [name for name in state if name.split(".")[-2] in LAYERS]:
        down = torch.randn(2, state[name].shape[1], generator=generator)
        up = torch.randn(state[name].shape[0], 2, generator=generator)
        layer = name.removesuffix(".weight")
        adapters |= {f"{layer}.lora_A.default.weight": down, f"{layer}.lora_B.default.weight": up}
        for row in range(len(up)):
            for rank in range(2):
                state[name][row] += alpha / 2 * up[row, rank] * down[rank]
    norm = torch.randn(32, generator=generator)
    adapters["model.norm.modules_to_save.default.weight"] = state["model.norm.weight"] = norm
    adapters["model.norm.original_module.weight"] = torch.zeros(32)
    merged.load_state_dict(state)
    return adapters, merged


@torch.no_grad()
def test_adapters_in_a_training_checkpoint_of_the_agent_are_merged(released, tmp_path):
    folder, model = released
    adapters, merged = adapt(model, alpha=32)
    base = "model.layers.0.self_attn.q_proj"
    named = {f"llm.base_model.model.{name}": value for name, value in adapters.items()}
    named[f"llm.base_model.model.{base}.base_layer.weight"] = model.state_dict()[f"{base}.weight"]
    agent = folder / "sft_gen" / "agent" / "pytorch_model.bin"
    torch.save({"module": {**torch.load(agent), **named}}, agent)
    weights = model.state_dict()
    weights[f"{base}.weight"] = torch.zeros_like(weights[f"{base}.weight"])  # the agent's base layer replaces it
    save_file(weights, folder / "sft_gen" / "llm" / "model.safetensors", {"format": "pt"})
    import_video_llm(folder / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    gives_the_expected_clip(tmp_path / "video_llm", merged)


@torch.no_grad()
def test_adapters_beside_the_language_model_are_merged_with_their_own_alpha(released, tmp_path):
    folder, model = released
    adapters, merged = adapt(model, alpha=5)
    saved = {
        f"base_model.model.{name.replace('.default', '').replace('modules_to_save.', '')}": value
        for name, value in adapters.items()
        if "original_module" not in name
    }
    save_file(saved, folder / "sft_gen" / "llm" / "adapter_model.safetensors")
    (folder / "sft_gen" / "llm" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 5}))
    import_video_llm(folder / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    gives_the_expected_clip(tmp_path / "video_llm", merged)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
@torch.no_grad()
def test_a_weight_that_embeddings_and_output_share_may_have_either_name(released, tmp_path, kept):
    folder, model = released
    llm = folder / "sft_gen" / "llm"
    stored = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**stored, "tie_word_embeddings": True}))
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    weights[kept] = weights.pop("model.embed_tokens.weight")
    save_file(weights, llm / "model.safetensors", {"format": "pt"})
    done = import_video_llm(folder / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    video_llm = gives_the_expected_clip(tmp_path / "video_llm", model)
    assert video_llm.causal_lm.lm_head.weight is video_llm.causal_lm.model.embed_tokens.weight
    assert done.parameters == sum(value.numel() for value in video_llm.state_dict().values()) - weights[kept].numel()
    save_file(
        {**weights, "lm_head.weight": weights[kept] + 1, "model.embed_tokens.weight": weights[kept]},
        llm / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=r"tie_word_embeddings.* differ"):
        import_video_llm(folder / "sft_gen", tmp_path / "again", num_queries=Q)
    assert not (tmp_path / "again").exists()


def nucleus(logits_V, temperature, top_p):
    """Return the probabilities of the smallest set of most likely words that reaches top_p."""
    chances = (logits_V / temperature).softmax(0)
    kept, total = torch.zeros_like(chances), 0.0
    for word in chances.argsort(descending=True).tolist():
        if total >= top_p:
            break
        kept[word], total = chances[word], total + float(chances[word])
    return kept / kept.sum()


@torch.no_grad()
def test_the_released_request_writes_until_the_model_opens_the_clip(released, tmp_path):
    folder, model = released
    tokenizer = toy_text_tokenizer()
    tokenizer.add_tokens([f"<frame_{index:05d}>" for index in range(256)])
    ids = tokenizer.convert_tokens_to_ids
    edited = MistralForCausalLM(model.config).eval()
    edited.load_state_dict(model.state_dict())
    edited.lm_head.weight[ids("<vid>")] *= 2.5  # so that this untrained model opens a clip after some words
    edited.save_pretrained(folder / "sft_gen" / "llm")
    import_video_llm(folder / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    video_llm, caption = load_component(tmp_path / "video_llm", VideoLLM).eval(), "a red circle moves left"

    # As in the released eval_Divot_video_gen.py, without cache: words until <vid>, then <frame> and the queries.
    generator, prompt = torch.Generator().manual_seed(42), f"[INST] Generate a video of {caption} [/INST]\n"
    sequence = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    asked = len(sequence)
    never = [ids(name) for name in ("<frame>", "</frame>", "</vid>", "</img>")]
    while sequence[-1] != ids("<vid>"):
        logits = edited(torch.tensor([sequence])).logits[0, -1]
        logits[never] = -torch.inf
        sequence.append(int(torch.multinomial(nucleus(logits, 0.7, 0.5), 1, generator=generator)))
        assert len(sequence) < asked + 256
    assert len(sequence) > asked + 1
    sequence += [ids("<frame>"), *(ids(f"<frame_{index:05d}>") for index in range(Q))]
    visible = torch.ones(len(sequence), len(sequence)).tril().bool()
    visible[-Q:, -Q:] = True
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    hidden = edited.model(input_ids=torch.tensor([sequence]), attention_mask=mask).last_hidden_state[:, -Q:]
    expected = video_llm.head.sample(hidden, generator=generator)

    options = {"template": "instruction", "request": ClipRequest.released(), "seed": 42}
    actual = generate_clip_features(video_llm, [caption], **options)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
    opened = generate_clip_features(
        video_llm, [caption], **{**options, "request": ClipRequest("Generate a video of {}")}
    )
    assert not torch.allclose(actual, opened, atol=0.1)


def test_weights_in_half_precision_and_several_files_keep_their_dtype(tmp_path):
    model = write_released(tmp_path, torch.float16)
    llm = tmp_path / "sft_gen" / "llm"
    (llm / "model.safetensors").unlink()
    names = list(model.state_dict())
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, some in parts.items():
        torch.save({name: model.state_dict()[name] for name in some}, llm / file)
    listed = {name: file for file, some in parts.items() for name in some}
    (llm / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": listed}))
    import_video_llm(tmp_path / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    stored = load_file(tmp_path / "video_llm" / "model.safetensors")
    assert all(torch.equal(stored[f"language_model.{name}"], value) for name, value in model.state_dict().items())
    video_llm = load_component(tmp_path / "video_llm", VideoLLM).use_stored_precision()
    assert video_llm.causal_lm.lm_head.weight.dtype == torch.float16
    (llm / "b.bin").write_bytes((llm / "b.bin").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"b\.bin cannot be read"):
        import_video_llm(tmp_path / "sft_gen", tmp_path / "again", num_queries=Q)
    (llm / "b.bin").unlink()
    with pytest.raises(UserError, match=r"there is no file .*b\.bin"):
        import_video_llm(tmp_path / "sft_gen", tmp_path / "again", num_queries=Q)
    assert not (tmp_path / "again").exists()


def edit(file, change):
    weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    change(weights)
    (save_file if file.suffix == ".safetensors" else torch.save)(weights, file)


LLM, AGENT = Path("sft_gen/llm/model.safetensors"), Path("sft_gen/agent/pytorch_model.bin")
DAMAGES = {
    "missing layer": (LLM, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), "missing: .*up_proj"),
    "unknown name": (LLM, lambda weights: weights.update(extra=torch.zeros(1)), "llm/extra"),
    "another size": (LLM, lambda weights: weights.update({"model.norm.weight": torch.zeros(7)}), "of another size"),
    "no embeddings": (LLM, lambda weights: weights.pop("model.embed_tokens.weight"), "embed_tokens"),
    "no projector": (AGENT, lambda weights: weights.pop("input_resampler.proj.0.weight"), "no released agent"),
    "unknown in agent": (AGENT, lambda weights: weights.update(other=torch.zeros(1)), "'other'"),
    "no mixture": (
        AGENT,
        lambda weights: weights.update({"output_resampler.proj.2.weight": torch.zeros(131, 132)}),
        "no mixture",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_fit_are_refused_by_name_and_leave_nothing(released, tmp_path, damage):
    file, change, message = DAMAGES[damage]
    edit(released[0] / file, change)
    with pytest.raises(UserError, match=message):
        import_video_llm(released[0] / "sft_gen", tmp_path / "run" / "video_llm", num_queries=Q)
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("config", [{"model_type": "nonsense"}, {}, {"model_type": "mistral", "model_type_": 1}])
def test_a_config_of_no_language_model_is_refused_in_five_lines(released, tmp_path, config):
    (released[0] / "sft_gen" / "llm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        import_video_llm(released[0] / "sft_gen", tmp_path / "video_llm", num_queries=Q)
    assert len(str(caught.value).splitlines()) <= 5
    assert not (tmp_path / "video_llm").exists()


def test_text_tokenizer_must_be_the_released_one(released, tmp_path, capsys):
    toy_text_tokenizer().save_pretrained(tmp_path / "toy")
    command = ["import", "video_llm", str(released[0] / "sft_gen"), "--to", str(tmp_path / "video_llm")]
    assert main([*command, "--text-tokenizer", str(tmp_path / "toy")]) == 2
    assert "no token <frame_00000> (64 are missing)" in capsys.readouterr().err
    shutil.rmtree(released[0] / "tokenizer")
    assert main(command) == 2
    assert "--text-tokenizer FOLDER" in capsys.readouterr().err


def test_command_imports_with_the_released_number_of_queries(released, tmp_path, capsys):
    assert main(["import", "video_llm", str(released[0] / "sft_gen"), "--to", str(tmp_path / "video_llm")]) == 0
    assert "M numbers" in capsys.readouterr().out
    queries = load_file(tmp_path / "video_llm" / "model.safetensors")["queries.weight_QD"]
    tokenizer = load_component(tmp_path / "video_llm", VideoLLM).text_tokenizer
    first, last = (tokenizer.convert_tokens_to_ids(f"<frame_000{index}>") for index in ("00", "63"))
    assert torch.equal(queries, released[1].get_input_embeddings().weight[first : last + 1].detach())


def test_whole_released_model_reconstructs_answers_and_generates(released, tmp_path, capsys):
    run, clip = tmp_path / "run", tmp_path / "clip.mp4"
    vit = {f"vit_model.model.{name}": value for name, value in openclip_vit().items()}
    torch.save({**load_file(DATA / "tokenizer_state.safetensors"), **vit}, tmp_path / "tokenizer.bin")
    torch.save({**load_file(DATA / "detokenizer_state.safetensors"), **original_vae()}, tmp_path / "detokenizer.bin")
    import_tokenizer(tmp_path / "tokenizer.bin", run / "tokenizer", None, tokenizer_config())
    import_detokenizer(tmp_path / "detokenizer.bin", run / "detokenizer", detokenizer_config(num_frames=8))
    import_video_llm(released[0] / "sft_gen", run / "video_llm", num_queries=Q)
    write_video(clip, torch.zeros(16, 3, 24, 24, dtype=torch.uint8).numpy(), 8.0)
    assert main(["reconstruct", str(run), str(clip), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    (settings,) = re.findall(r"```yaml\n(data:.*?)```", (DOCS / "training" / "importing.md").read_text(), re.DOTALL)
    (run / "config.yaml").write_text(settings.replace("256", "16"))
    models = LoadedRun(run)
    assert (models.template, models.clip.resize, models.decoded_clip.resize) == ("instruction", *["pil_bilinear"] * 2)
    assert models.tasks == {"conversation": {"end_after": "last", "separator": "\n"}}
    assert main(["ask", str(run), str(clip), "--question", "what colour is it ?"]) == 0
    assert capsys.readouterr().out.strip()
    made = tmp_path / "made.mp4"
    prompt = ["--prompt", "a red circle moves left", "--request", "Generate a video of {}", "--open-clip"]
    assert main(["generate", str(run), *prompt, "--max-new-tokens", "4", "--output", str(made)]) == 0
    assert made.stat().st_size > 0
