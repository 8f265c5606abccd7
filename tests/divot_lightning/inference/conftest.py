from functools import partial

import pytest
import torch

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.objectives.ddim import VPrediction
from divot_backbones.vision.clip import ClipVision
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig


@pytest.fixture(scope="session")
def llm_run(tmp_path_factory):
    return write_untrained_run(tmp_path_factory.mktemp("llm_run"))


def write_untrained_run(folder):
    """Write a run folder with a tokenizer, a de-tokenizer and a video LLM, all tiny and untrained."""
    torch.manual_seed(0)
    vision = partial(ClipVision, image_size=32, patch_size=16, width=8, layers=1, heads=2, frozen=False)
    sizes = {"temporal_width": 8, "temporal_layers": 1, "temporal_heads": 2, "temporal_init": "random", "pool_size": 2}
    sizes |= {"spatiotemporal_width": 8, "spatiotemporal_layers": 1, "spatiotemporal_heads": 2}
    sizes |= {"resampler_layers": 1, "resampler_heads": 2, "resampler_head_dim": 4, "num_tokens": 3, "token_dim": 4}
    save_component(VideoTokenizer(TokenizerConfig(vision=vision, **sizes)), folder / "tokenizer")
    detokenizer = VideoDetokenizer(
        DetokenizerConfig(
            latents=partial(BlockDCTLatents, scale=0.18215),
            denoiser=partial(VideoDiT, width=8, layers=1, heads=2, patch_frames=4),
            objective=VPrediction,
            sampling=SamplingConfig(steps=2),
            size=32,
            num_tokens=3,
            token_dim=4,
        )
    )
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
