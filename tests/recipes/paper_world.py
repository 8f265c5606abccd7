"""All that the paper's recipes need, without weights: models as settings only, and a few long clips with long texts.

`divot preflight` reads no weights, so that it measures the paper's sizes here. Captions have 100 tokens, answers and
stories are longer than any `max_length`, and videos have as many clips as recipes take.
"""

import functools
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, MistralConfig

from divot_backbones.vision.clip import ClipVision
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import new_component
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.registries.recipe_parts import expand_recipe
from divot_lightning.preflight.shapes import without_weights
from divot_lightning.training.recipe_files import recipes_dir

CAPTION = " ".join(["a red circle moves left"] * 20)
LONG_TEXT = " ".join(["a red circle moves left"] * 400)
SAMPLES = 4
MARKED_CHAT = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def make_paper_world(folder: Path) -> None:
    """Write `models/`, `data/paper/` and `runs/paper/` into a folder that is the working directory."""
    _write_models(folder / "models")
    _write_data(folder / "data/paper")
    _write_runs(folder / "runs/paper")


def _write_models(folder: Path) -> None:
    CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
    ).save_pretrained(folder / "clip-vit-h-14")
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    vae = {"down_block_types": blocks[0], "up_block_types": blocks[1], "block_out_channels": [128, 256, 512, 512]}
    write_json(
        folder / "dynamicrafter/vae/config.json",
        {"_class_name": "AutoencoderKL", "latent_channels": 4, "layers_per_block": 2, "sample_size": 256, **vae},
    )
    # All of its settings are the released ones by default.
    write_json(folder / "dynamicrafter/unet/config.json", {"_class_name": "DynamiCrafterUNet"})
    llm = folder / "mistral-7b-instruct-v0.1"
    MistralConfig(sliding_window=4096, num_key_value_heads=8, max_position_embeddings=32768).save_pretrained(llm)
    word_level_tokenizer(LONG_TEXT.split()).save_pretrained(llm)


def _write_data(folder: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(picture, "jpeg")
    video = encode_video(np.zeros((16 * 20, 128, 128, 3), np.uint8).transpose(0, 3, 1, 2), 8.0)
    for name, suffix, media in (
        ("webvid", "mp4", video),
        ("panda70m", "mp4", video),
        ("valley", "mp4", video),
        ("cc3m", "jpg", picture.getvalue()),
        ("journeydb", "jpg", picture.getvalue()),
    ):
        write_tar(folder / name / "0.tar", suffix, media)
    for name, media in (("a.mp4", video), ("a.jpg", picture.getvalue())):
        (folder / "media").mkdir(exist_ok=True)
        (folder / "media" / name).write_bytes(media)
        (folder / name).write_bytes(media)
    said = [{"from": "human", "value": "a red circle"}, {"from": "gpt", "value": LONG_TEXT}]
    story = {"instruction": "a red circle", "texts": [LONG_TEXT] * 3}
    write_lines(folder / "video_questions.jsonl", {"video": "a.mp4", "conversations": said})
    write_lines(folder / "image_questions.jsonl", {"image": "a.jpg", "conversations": said})
    write_lines(folder / "stories.jsonl", {"videos": ["a.mp4"] * 3, "story": story})


def _write_runs(folder: Path) -> None:
    """Write components as the paper's recipes make them, in their sizes."""
    recipe = {name: model_settings(f"paper/{name}") for name in ("tokenizer_pretraining", "llm_pretraining")}
    tokenizer = TokenizerConfig(vision=functools.partial(ClipVision, pretrained="models/clip-vit-h-14"))
    settings = recipe["tokenizer_pretraining"]["detokenizer"]
    llm = recipe["llm_pretraining"]["llm"]
    config = VideoLLMConfig(**{**llm, "lora": LoRAConfig(**llm["lora"])})
    config = config.for_tokenizer(tokenizer.tokens_per_clip, tokenizer.token_dim)
    with without_weights():
        parts: dict[str, nn.Module] = {
            "tokenizer": VideoTokenizer(tokenizer),
            "detokenizer": VideoDetokenizer(
                DetokenizerConfig(**settings).for_tokens(tokenizer.tokens_per_clip, tokenizer.token_dim)
            ),
            "video_llm": VideoLLM(config, GMMHead),
        }
    runs = ("tokenizer_pretraining", "detokenizer_refinement", "llm_pretraining", "generation_tuning")
    write_components(parts, [folder / run for run in runs])


def write_components(parts: Mapping[str, nn.Module], runs: Iterable[Path]) -> None:
    """Write components without weights into each run folder."""
    for run in runs:
        for name, module in parts.items():
            with new_component(module, run / name) as weights:
                save_file({}, weights)


def model_settings(name: str) -> dict[str, Any]:
    """Return the settings of a shipped recipe's stage."""
    recipe = yaml.safe_load((recipes_dir() / f"{name}.yaml").read_text())
    settings: dict[str, Any] = expand_recipe(recipe["model"]["init_args"])
    return settings


def write_tar(path: Path, suffix: str, media: bytes) -> None:
    """Write a shard of captioned media."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for number in range(SAMPLES):
            for name, content in ((suffix, media), ("json", json.dumps({"caption": CAPTION}).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_lines(path: Path, sample: dict[str, Any]) -> None:
    """Write a list of equal samples."""
    path.write_text("".join(json.dumps(sample) + "\n" for _ in range(SAMPLES)))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a config."""
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
