import pytest
import torch

from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from tests.helpers.tiny_models import tiny_detokenizer, tiny_tokenizer


@pytest.fixture(scope="session")
def llm_run(tmp_path_factory):
    return write_untrained_run(tmp_path_factory.mktemp("llm_run"))


def write_untrained_run(folder):
    """Write a run folder with a tokenizer, a de-tokenizer and a video LLM, all tiny and untrained."""
    torch.manual_seed(0)
    save_component(tiny_tokenizer(), folder / "tokenizer")
    detokenizer = tiny_detokenizer()
    for value in detokenizer.denoiser.parameters():
        torch.nn.init.normal_(value, std=0.5)
    save_component(detokenizer, folder / "detokenizer")
    toy_text_tokenizer().save_pretrained(folder / "text")
    model = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = VideoLLMConfig(
        language_model_config={**model, "intermediate_size": 16},
        text_tokenizer=str(folder / "text"),
        num_queries=3,
        feature_dim=4,
    )
    video_llm = VideoLLM(config, GMMHead)
    for value in video_llm.parameters():
        value.data += 0.3 * torch.randn_like(value)
    save_component(video_llm, folder / "video_llm")
    return folder
