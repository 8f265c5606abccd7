from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.objectives.ddim import VPrediction
from divot_backbones.vision.clip import ClipVision
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.mse import MSEHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.model import VideoLLMConfig
from divot_lightning.parts.segments import Clips, Text

NUM_QUERIES, FEATURE_DIM = 3, 8


@pytest.fixture
def tokenizer_config():
    """Settings of a tiny tokenizer."""
    vision = partial(ClipVision, frozen=False, image_size=8, patch_size=4, width=8, layers=1, heads=2)
    sizes = {"temporal_width": 6, "temporal_layers": 1, "temporal_heads": 1, "temporal_init": "random", "pool_size": 2}
    sizes |= {"spatiotemporal_width": 8, "spatiotemporal_layers": 1, "spatiotemporal_heads": 1}
    sizes |= {"num_tokens": NUM_QUERIES, "resampler_layers": 1, "resampler_heads": 1, "resampler_head_dim": 4}
    return TokenizerConfig(vision=vision, token_dim=FEATURE_DIM, **sizes)


@pytest.fixture
def tokenizer_run(tmp_path, tokenizer_config):
    """The run folder of a tokenizer stage, with random weights."""
    torch.manual_seed(0)
    save_component(VideoTokenizer(tokenizer_config), tmp_path / "tokenizer_run" / "tokenizer")
    return tmp_path / "tokenizer_run"


@pytest.fixture
def detokenizer_config():
    """Settings of a tiny de-tokenizer for the tokens of `tokenizer_config`."""
    return DetokenizerConfig(
        latents=partial(BlockDCTLatents, block_size=4, luma_frequencies=4, chroma_frequencies=1),
        denoiser=partial(VideoDiT, width=12, layers=1, heads=2, patch_frames=4, condition_in_modulation=True),
        objective=VPrediction,
        size=8,
        num_tokens=NUM_QUERIES,
        token_dim=FEATURE_DIM,
    )


@pytest.fixture
def pretraining_run(tokenizer_run, detokenizer_config):
    """The run folder of a tokenizer pretraining; no weight of the de-tokenizer is zero, as after some training."""
    detokenizer = VideoDetokenizer(detokenizer_config)
    for value in detokenizer.parameters():
        value.data += 0.2 * torch.randn_like(value)
    save_component(detokenizer, tokenizer_run / "detokenizer")
    return tokenizer_run


@pytest.fixture
def clips():
    """Batches of two clips."""
    generator = torch.Generator().manual_seed(4)
    shape = (2, 16, 3, 8, 8)
    return [
        {"video": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), "key": [f"a{i}", f"b{i}"]}
        for i in range(3)
    ]


@pytest.fixture
def make_config(tmp_path):
    """Settings of a tiny video LLM."""
    word_level_tokenizer(["a red circle moves left", "blue square right what ?"]).save_pretrained(tmp_path / "text")

    def make(**changes):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        settings = {"language_model_config": {"model_type": "llama", **sizes}, "text_tokenizer": str(tmp_path / "text")}
        settings |= {"num_queries": NUM_QUERIES, "feature_dim": FEATURE_DIM}
        return VideoLLMConfig(**{**settings, **changes})

    return make


@pytest.fixture
def batches(make_config):
    """Batches with videos: a caption, a generation, and one of text only."""
    collator = sequence_collator(make_config())
    torch.manual_seed(1)
    both = [
        [Clips(1, "read"), Text("a red circle moves left", True)],
        [Text("a blue square", False), Clips(1, "generate")],
    ]
    video = torch.randint(0, 256, (2, 16, 3, 8, 8), dtype=torch.uint8)
    rows = [{"segments": both, "key": ["a", "b"], "video": video.roll(i, 1)} for i in range(3)]
    rows.append({"segments": [[Text("what ?", True)]], "key": ["c"]})
    return [{**row, "sequences": collator.lay_out(row["segments"])} for row in rows]


@pytest.fixture
def loader(batches):
    return DataLoader(batches, batch_size=None)


@pytest.fixture
def head():
    return MSEHead
