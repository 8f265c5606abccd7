"""Exports hold the weights that were trained, in formats that transformers, PEFT and diffusers load."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, LatteTransformer3DModel
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from divot_backbones.denoisers.diffusers_denoiser import Latte
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.objectives.ddim import VPrediction
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.run_components import find_component, weights_sha256
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.interop.exporting.export import export_run, require_shard_size
from divot_lightning.interop.exporting.export_parts import load_head
from divot_lightning.interop.exporting.hub_upload import push_to_hub
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from tests.divot_lightning.training.conftest import tokenizer_config  # noqa: F401

IDS = torch.tensor([[3, 9, 4, 7, 5, 11]])
LATTE = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "patch_size": 2, "out_channels": 8}
LATTE |= {"norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False}
VAE = {"block_out_channels": [4, 4], "norm_num_groups": 2, "latent_channels": 4, "layers_per_block": 1}
VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def stir(module):
    """Change all weights, so that none has its initial value."""
    with torch.no_grad():
        for value in module.parameters():
            value += 0.1 * torch.randn_like(value)
    return module.eval()


@pytest.fixture
def make_llm(tmp_path):
    torch.manual_seed(0)
    toy_text_tokenizer().save_pretrained(tmp_path / "text")

    def make(tied=False, **changes):
        sizes = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = VideoLLMConfig(
            language_model_config={**sizes, "intermediate_size": 24, "tie_word_embeddings": tied},
            text_tokenizer=str(tmp_path / "text"),
            num_queries=3,
            feature_dim=8,
        )
        return stir(VideoLLM(replace(config, **changes), GMMHead))

    return make


@pytest.fixture
def run(tmp_path, make_llm, tokenizer_config):  # noqa: F811
    """A folder of components: tokenizer, de-tokenizer of diffusers models, video LLM with adapters."""
    save_component(stir(VideoTokenizer(tokenizer_config)), tmp_path / "run" / "tokenizer")
    save_component(make_detokenizer(), tmp_path / "run" / "detokenizer")
    save_component(make_llm(lora=LoRAConfig(rank=2)), tmp_path / "run" / "video_llm")
    return tmp_path / "run"


def make_detokenizer(training="full"):
    return stir(
        VideoDetokenizer(
            DetokenizerConfig(
                latents=partial(ImageVAELatents, config=VAE),
                denoiser=partial(Latte, config=LATTE, training=training),
                objective=VPrediction,
                sampling=SamplingConfig(steps=2, guidance=1.0),
                size=8,
                num_frames=2,
                num_tokens=3,
                token_dim=8,
            )
        )
    )


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def state_of(folder, kind):
    return load_component(folder, kind).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2), LoRAConfig(rank=2, train_embeddings=True)])
def test_logits_of_the_transformers_folder_are_those_of_the_training_model(tmp_path, make_llm, tied, lora):
    trained = make_llm(tied=tied, lora=lora)
    save_component(trained, tmp_path / "run" / "video_llm")
    export_run(tmp_path / "run", tmp_path / "out")
    folder = tmp_path / "out" / "video_llm" / "language_model"
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(trained.causal_lm))
    again = load_component(tmp_path / "out" / "video_llm", VideoLLM)
    assert again.config.lora is None
    torch.testing.assert_close(logits(again.causal_lm), logits(trained.causal_lm))
    text = "<vid> a red circle"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == trained.text_tokenizer(text)["input_ids"]
    assert len(tokenizer) == trained.causal_lm.config.vocab_size


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_the_adapter_loaded_onto_its_base_gives_the_logits_of_the_training_model(tmp_path, make_llm, train_embeddings):
    torch.manual_seed(1)
    base = make_llm()
    base.causal_lm.save_pretrained(tmp_path / "base")
    lora = LoRAConfig(rank=2, train_embeddings=train_embeddings)
    trained = make_llm(language_model_config=None, language_model=str(tmp_path / "base"), lora=lora)
    with torch.no_grad():  # frozen weights are the base's, as after training
        frozen = dict(base.causal_lm.named_parameters())
        for name, value in trained.causal_lm.named_parameters():
            plain = name.replace(".base_layer", "").replace(".original_module", "").replace(".token_adapter", "")
            if not value.requires_grad:
                value.copy_(frozen[plain])
    save_component(trained, tmp_path / "run" / "video_llm")
    out = export_run(tmp_path / "run", tmp_path / "out", keep_adapters=True) / "video_llm"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = logits(model)
    adapted = logits(PeftModel.from_pretrained(model, out / "adapter"))
    torch.testing.assert_close(adapted, logits(trained.language_model))
    assert not torch.allclose(adapted, before)
    assert_same(state_of(out, VideoLLM), trained.state_dict())


def test_all_components_are_found_in_the_one_folder_with_the_same_weights(run, tmp_path):
    out = export_run(run, tmp_path / "out")
    for name, kind in {"tokenizer": VideoTokenizer, "detokenizer": VideoDetokenizer}.items():
        assert_same(state_of(find_component(out, name), kind), state_of(run / name, kind))
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "DivotPipeline"
    assert index["detokenizer"] == [VideoDetokenizer.__module__, "VideoDetokenizer"]
    assert weights_sha256(out / "tokenizer") == weights_sha256(run / "tokenizer")


def test_denoiser_and_vae_are_folders_of_diffusers_with_the_same_outputs(run, tmp_path):
    out = export_run(run, tmp_path / "out") / "detokenizer"
    trained = load_component(run / "detokenizer", VideoDetokenizer).eval()
    assert_same(
        LatteTransformer3DModel.from_pretrained(out / "denoiser").state_dict(), trained.denoiser.model.state_dict()
    )
    assert_same(AutoencoderKL.from_pretrained(out / "vae").state_dict(), trained.latents.vae.state_dict())
    tokens, kept = torch.randn(1, 3, 8), load_component(out, VideoDetokenizer).eval()
    clips = [each.decode(tokens, generator=torch.Generator().manual_seed(0)) for each in (trained, kept)]
    assert torch.equal(*clips)


def test_adapters_of_a_denoiser_are_merged(tmp_path):
    trained = make_detokenizer("lora")
    save_component(trained, tmp_path / "run" / "detokenizer")
    out = export_run(tmp_path / "run", tmp_path / "out") / "detokenizer"
    again = load_component(out, VideoDetokenizer).eval()
    inputs = torch.randn(1, 2, 4, 4, 4), torch.tensor([3]), torch.randn(1, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.denoiser(*inputs), trained.denoiser(*inputs))
    assert again.denoiser.init_args["training"] == "full"
    assert not [name for name in load_file(out / "denoiser" / "diffusion_pytorch_model.safetensors") if "lora" in name]


def test_the_head_alone_has_the_same_loss(run, tmp_path):
    head = load_head(export_run(run, tmp_path / "out") / "video_llm" / "head")
    trained = load_component(run / "video_llm", VideoLLM).head.eval()
    hidden, target = torch.randn(2, 3, 16), torch.randn(2, 3, 8)
    assert torch.equal(head.loss(hidden, target), trained.loss(hidden, target))


def test_no_weight_is_written_twice(run, tmp_path):
    out = export_run(run, tmp_path / "out", components=["video_llm", "detokenizer"])
    for name, kind in {"video_llm": VideoLLM, "detokenizer": VideoDetokenizer}.items():
        files = [load_file(file) for file in (out / name).rglob("*.safetensors")]
        written = sum(value.numel() for tensors in files for value in tensors.values())
        assert written == sum(value.numel() for value in state_of(out / name, kind).values())


def test_large_files_are_split_and_loaded_again(run, tmp_path):
    whole, split = export_run(run, tmp_path / "whole"), export_run(run, tmp_path / "split", max_shard_size=2000)
    assert not (split / "tokenizer" / "model.safetensors").exists()
    assert (split / "tokenizer" / "model.safetensors.index.json").is_file()
    for name, kind in {"tokenizer": VideoTokenizer, "detokenizer": VideoDetokenizer, "video_llm": VideoLLM}.items():
        assert len(list((split / name).rglob("*-of-*.safetensors"))) > 1
        assert_same(state_of(split / name, kind), state_of(whole / name, kind))
    first = weights_sha256(split / "tokenizer")
    file = next((split / "tokenizer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert weights_sha256(split / "tokenizer") != first


def test_the_card_has_recipe_data_and_scores_and_names_no_folder_of_the_machine(run, tmp_path):
    (run / "finished.json").write_text("{}")
    (tmp_path / "phrases.txt").write_text("Film {}\n\nShow {}\n")
    (run / "config.yaml").write_text(
        "data: {init_args: {template: chat, train: [{path: /home/me/clips.tar, tasks: {caption: 1, "
        f"generate: {{weight: 1, init_args: {{video_prompts: '{tmp_path}/phrases.txt'}}}}}}}}]}}}}\n"
        "trainer: {max_steps: 7}\n"
    )
    scores = [{"name": "accuracy", "value": 0.25, "count": 8, "protocol": {"data": "/home/me/qa.json", "frames": 16}}]
    out = export_run(run, tmp_path / "out", scores=scores)
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license:" not in card
    assert "max_steps: 7" in card
    assert "| accuracy | 0.2500 | 8 | 1 |" in card
    assert '"frames": 16' in card
    assert "/home/me" not in card + (out / "config.yaml").read_text()
    from divot_lightning.inference.run_config import run_tasks, run_template

    assert (run_template(out), run_tasks(out)) == (
        "chat",
        {"caption": {}, "generate": {"video_prompts": ["Film {}", "Show {}"]}},
    )


def test_no_settings_of_an_export_name_a_folder_of_the_machine(run, tmp_path):
    for number, keep_adapters in enumerate([False, True]):
        out = export_run(run, tmp_path / f"out{number}", keep_adapters=keep_adapters)
        settings = [file for file in out.rglob("*") if file.suffix in (".json", ".yaml", ".md")]
        assert not [str(file) for file in settings if str(tmp_path) in file.read_text()]


def test_an_existing_folder_is_kept(run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        export_run(run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_of_an_export_that_fails(run, tmp_path):
    (run / "video_llm" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read"):
        export_run(run, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "text"}


def test_errors_of_the_command_are_short_and_say_what_to_do(tmp_path, capsys, run):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("trainer: {}\n")
    expected = {
        (str(tmp_path / "half"),): "has not finished",
        (str(tmp_path / "none"),): "there is no run folder",
        (str(run), "--components", "projector"): "has no projector; it has: detokenizer, tokenizer, video_llm",
        (str(run), "--max-shard-size", "five"): "such as 5GB",
        (str(run), "--public"): "no effect",
        (str(run), "--push-to-hub", "a/b/c"): "no name of a hub repository",
    }
    for words, message in expected.items():
        assert main(["export", *words, "--to", str(tmp_path / "out")]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert len(shown.splitlines()) <= 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "0GB", "1.2.3GB", "5gigabytes"])
def test_sizes_without_number_or_unit_are_refused(text):
    with pytest.raises(UserError):
        require_shard_size(text)
    assert require_shard_size("1.5gb") == "1.5GB"


class FakeHub:
    """Records calls as `huggingface_hub.HfApi` takes them; `status` makes the upload fail."""

    def __init__(self, status=None, offline=False):
        self.status, self.offline, self.calls = status, offline, []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.status:
            response = SimpleNamespace(status_code=self.status, headers={}, request=None)
            raise HfHubHTTPError("Authorization: Bearer hf_secret", response=response)
        if self.offline:
            raise HTTPError("hf_secret: no route to host")
        self.calls.append(("upload", repo_id, folder_path))
        return f"https://hub/{repo_id}/commit/1"


def test_an_upload_makes_a_private_repository_and_sends_the_folder(tmp_path):
    hub = FakeHub()
    assert push_to_hub(tmp_path, "me/divot", api=hub) == "https://hub/me/divot/commit/1"
    assert hub.calls == [("create", "me/divot", True, True), ("upload", "me/divot", str(tmp_path))]


@pytest.mark.parametrize(("hub", "reason"), [(FakeHub(403), "HTTP 403"), (FakeHub(offline=True), "HTTPError")])
def test_a_failed_upload_says_what_to_do_and_shows_no_token(tmp_path, hub, reason):
    with pytest.raises(UserError, match=reason) as caught:
        push_to_hub(tmp_path, "me/divot", api=hub)
    assert "hf_secret" not in str(caught.value)
    assert f"hf upload me/divot {tmp_path}" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
