"""A video LLM that is small enough to be run many times."""

import pytest
import torch

from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.mse import MSEHead
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from tests.divot_lightning.models.video_llm.tiny_video_llm import TINY, C, Q


@pytest.fixture(scope="session")
def text_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_tokenizer")
    word_level_tokenizer(["a red circle moves left", "blue square right what ?"]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(text_tokenizer):
    def make(head=MSEHead, model="llama", **changes):
        torch.manual_seed(0)
        unknown = {"intermediate_size", "num_key_value_heads"} if model == "gpt2" else set()
        sizes = {name: size for name, size in TINY.items() if name not in unknown}
        config = {"model_type": model, **sizes, **changes.pop("language_model", {})}
        settings = {"language_model_config": config, "text_tokenizer": text_tokenizer, "num_queries": Q}
        return VideoLLM(VideoLLMConfig(**{**settings, "feature_dim": C, **changes}), head).eval()

    return make
