"""All that the recipes of `modern/` need, without weights: models as configs of their true sizes; see `paper_world`."""

import functools
from pathlib import Path

import numpy as np
from transformers import Qwen3Config, SiglipConfig, VJEPA2Config

from divot_backbones.vision.transformers_vision import TransformersVision
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.preflight.shapes import without_weights
from tests.recipes.paper_world import (
    LONG_TEXT,
    MARKED_CHAT,
    model_settings,
    write_components,
    write_json,
    write_lines,
    write_tar,
)

SIGLIP_2 = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
"""google/siglip2-so400m-patch16-256."""
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096}
"""Wan-AI/Wan2.1-T2V-1.3B-Diffusers; its VAE is the default of its class."""
LATTE = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "caption_channels": 4096}
LATTE |= {"cross_attention_dim": 1152, "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 64}
LATTE |= {"norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False}
LATTE |= {"video_length": 16, "norm_eps": 1e-6, "attention_bias": True, "activation_fn": "gelu-approximate"}
"""maxin-cn/Latte-1."""
QWEN_3 = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN_3 |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
"""Qwen/Qwen3-4B."""


def make_modern_world(folder: Path) -> None:
    """Write `models/`, `data/` and `runs/modern/` into a folder that is the working directory."""
    models, data = folder / "models", folder / "data"
    vision = {**SIGLIP_2, "image_size": 256, "patch_size": 16}
    SiglipConfig(vision_config=vision).save_pretrained(models / "siglip2-so400m-patch16-256")
    VJEPA2Config(crop_size=256).save_pretrained(models / "vjepa2-vitl-fpc64-256")
    write_json(
        models / "wan2.1-t2v-1.3b/transformer/config.json",
        {"_class_name": "WanTransformer3DModel", "out_channels": 16, **WAN},
    )
    write_json(models / "wan2.1-t2v-1.3b/vae/config.json", {"_class_name": "AutoencoderKLWan"})
    write_json(models / "latte-1/transformer/config.json", {"_class_name": "LatteTransformer3DModel", **LATTE})
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    blocks |= {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
    write_json(models / "latte-1/vae/config.json", {"_class_name": "AutoencoderKL", **blocks})
    Qwen3Config(**QWEN_3, max_position_embeddings=40960).save_pretrained(models / "qwen3-4b")
    text_tokenizer = word_level_tokenizer(LONG_TEXT.split())
    text_tokenizer.chat_template = MARKED_CHAT
    text_tokenizer.save_pretrained(models / "qwen3-4b")
    video = encode_video(np.zeros((16 * 20, 64, 64, 3), np.uint8).transpose(0, 3, 1, 2), 8.0)
    write_tar(data / "videos/0.tar", "mp4", video)
    (data / "media").mkdir()
    (data / "media/a.mp4").write_bytes(video)
    said = [{"from": "human", "value": "a red circle"}, {"from": "gpt", "value": LONG_TEXT}]
    write_lines(data / "video_questions.jsonl", {"video": "a.mp4", "conversations": said})
    _write_runs(folder / "runs/modern")


def _write_runs(folder: Path) -> None:
    tokenizer = TokenizerConfig(
        vision=functools.partial(TransformersVision, pretrained="models/siglip2-so400m-patch16-256")
    )
    llm = model_settings("modern/qwen_pretraining")["llm"]
    config = VideoLLMConfig(**{**llm, "lora": LoRAConfig(**llm["lora"])})
    with without_weights():
        parts = {
            "tokenizer": VideoTokenizer(tokenizer),
            "video_llm": VideoLLM(config.for_tokenizer(tokenizer.tokens_per_clip, tokenizer.token_dim), GMMHead),
        }
    write_components(parts, [folder / "wan_tokenizer", folder / "qwen_pretraining"])
