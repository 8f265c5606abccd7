"""Compare LLM training steps on cached features with the same steps that encode the videos themselves.

Run: python benchmarks/cached_features.py [--steps 8] [--max-clips 1] [--image-size 32 --vision-width 64 ...]

Sizes are those of the toy recipes, unless the tokenizer's ViT is made larger. Both ways take the same samples in turn:
data, features, forward, backward; their features must be the same bits and their losses equal. JSON on stdout holds
ratios of CPU time of the process, which other work on the machine does not change.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.toy.shards import ToyDataConfig, write_toy_data
from divot_datamodules.video_text import VideoTextData
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.inference.feature_encoding import EncodeConfig, encode_shards
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.training.recipe_files import find_recipe
from divot_lightning.training.stages.video_llm_step import clip_features


def toy_settings(stage: str) -> dict[str, Any]:
    recipe = yaml.safe_load(find_recipe(f"toy/{stage}").read_text(encoding="utf-8"))
    return copy.deepcopy(recipe["model"]["init_args"])


def build_tokenizer(args: argparse.Namespace) -> VideoTokenizer:
    settings = toy_settings("tokenizer_pretraining")["tokenizer"]
    given = {"image_size": args.image_size, "width": args.vision_width, "layers": args.vision_layers}
    settings["vision"]["init_args"] |= {name: value for name, value in given.items() if value is not None}
    if args.image_size is not None:
        settings["vision"]["init_args"]["patch_size"] = max(4, args.image_size // 16)
    return VideoTokenizer(TokenizerConfig(**settings)).requires_grad_(False).eval()


def build_llm(data: Path, tokenizer: TokenizerConfig) -> VideoLLM:
    settings = toy_settings("llm_pretraining")["llm"] | {"text_tokenizer": str(data / "text_tokenizer")}
    config = VideoLLMConfig(**settings).for_tokenizer(tokenizer.tokens_per_clip, tokenizer.token_dim)
    return VideoLLM(config, GMMHead)


def batches(source: Path, clip: ClipConfig, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    tasks = {"caption": 2.0, "generate": 1.0}
    data = VideoTextData(str(source), batch_size=args.batch_size, clip=clip, tasks=tasks, max_clips=args.max_clips)
    data.setup("fit")
    return iter(data.train_dataloader())


def step(loader: Iterator[dict[str, Any]], tokenizer: VideoTokenizer, llm: VideoLLM) -> dict[str, Any]:
    """Take a training step, and return its features, its loss and the CPU time of its parts."""
    llm.zero_grad()
    times = [time.process_time()]
    batch = next(loader)
    times.append(time.process_time())
    features = clip_features(batch, tokenizer)
    times.append(time.process_time())
    output = llm(llm.sequences(batch["segments"]), features)
    loss = output.text_loss + output.head_loss
    loss.backward()
    times.append(time.process_time())
    parts = dict(zip(("data", "features", "llm"), torch.tensor(times).diff().tolist(), strict=True))
    return {"features": features, "loss": loss.detach(), "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--max-clips", type=int, default=1)
    parser.add_argument("--image-size", type=int, help="pixels the ViT sees (default: the toy's 32)")
    parser.add_argument("--vision-width", type=int, help="width of the ViT (default: the toy's 64)")
    parser.add_argument("--vision-layers", type=int, help="layers of the ViT (default: the toy's 1)")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data, clip = Path(name) / "toy", ClipConfig()
        write_toy_data(data, ToyDataConfig(train=args.batch_size * args.steps, validation=4, held_out=4))
        tokenizer = build_tokenizer(args)
        llm = build_llm(data, tokenizer.config)
        save_component(tokenizer, Path(name) / "run" / "tokenizer")
        settings = EncodeConfig(clip, args.max_clips)
        encode_shards(Path(name) / "run", data / "train", Path(name) / "features", settings)
        sources = {"online": data / "train", "cached": Path(name) / "features"}
        loaders = {way: batches(source, clip, args) for way, source in sources.items()}
        taken: dict[str, list[dict[str, Any]]] = {way: [] for way in sources}
        for _ in range(args.steps):
            for way, loader in loaders.items():
                taken[way].append(step(loader, tokenizer, llm)["parts"])
        checked = {way: step(loader, tokenizer, llm) for way, loader in loaders.items()}
        assert torch.equal(checked["online"]["features"], checked["cached"]["features"])
        assert torch.equal(checked["online"]["loss"], checked["cached"]["loss"])
    milliseconds = {
        way: {part: round(1e3 * statistics.median(one[part] for one in parts[1:]), 1) for part in parts[0]}
        for way, parts in taken.items()
    }
    whole = {way: sum(parts.values()) for way, parts in milliseconds.items()}
    alone = {way: parts["features"] + parts["llm"] for way, parts in milliseconds.items()}
    result = {
        "step_times_faster": round(whole["online"] / whole["cached"], 2),
        "without_loading_times_faster": round(alone["online"] / alone["cached"], 2),
        "milliseconds": milliseconds,
        "tokenizer_parameters": sum(p.numel() for p in tokenizer.parameters()),
        "llm_parameters": sum(p.numel() for p in llm.parameters()),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
