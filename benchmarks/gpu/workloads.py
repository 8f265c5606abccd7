"""What is trained: the recipes of the paper, with random weights in place of pretrained ones, on one device.

Every workload is a recipe that `divot fit` runs, so that the figures are those a user gets. `SIZES` holds the
sizes that stand for pretrained models: "full" those of the released models, "tiny" for the test of this script.
"""

from pathlib import Path
from typing import Any

import yaml

from divot_lightning.training.recipe_files import recipes_dir

Changes = dict[str, Any]

SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "pixels": 256,
        "samples": 64,
        "words": 32_000,
        "row": 4096,
        # OpenCLIP ViT-H/14
        "vision": {"frozen": True, "image_size": 224, "patch_size": 14, "width": 1280, "layers": 32, "heads": 16}
        | {"mlp_width": 5120},
        "tokenizer": {},  # the defaults are the paper's
        "vae": {  # Stable Diffusion's
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "latent_channels": 4,
            "sample_size": 256,
        },
        "unet": {},  # the defaults are DynamiCrafter's: 1438.8 M parameters
        "wan_vae": {"z_dim": 16},  # Wan 2.1's
        "wan": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},  # 1.3B
        "resampler": None,  # that of the recipe
        "llm": {  # Mistral-7B
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "dtype": "bfloat16",
        },
        "short_llm": {"num_hidden_layers": 4},
        "batch": {"clips": 4, "captions": 8, "others": 32},
        "head_batch": {"clips": 4, "tokens": 16},
    },
    "tiny": {
        "pixels": 32,
        "samples": 8,
        "words": 500,
        "row": 512,
        "vision": {"frozen": True, "image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2}
        | {"mlp_width": 64},
        "tokenizer": {
            "temporal_width": 32,
            "temporal_layers": 1,
            "temporal_heads": 2,
            "pool_size": 2,
            "spatiotemporal_width": 32,
            "spatiotemporal_layers": 1,
            "spatiotemporal_heads": 2,
            "num_tokens": 4,
            "resampler_layers": 1,
            "resampler_heads": 2,
            "resampler_head_dim": 16,
            "token_dim": 16,
        },
        "vae": {
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "block_out_channels": [8, 8, 8],
            "layers_per_block": 1,
            "latent_channels": 4,
            "sample_size": 32,
            "norm_num_groups": 4,
        },
        # small, since a CPU takes long for bfloat16
        "unet": {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_levels": [0], "context_split": 4}
        | {"attention_head_dim": 4, "input_attention_heads": 2, "norm_num_groups": 4},
        "wan_vae": {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1, "temperal_downsample": [True]}
        | {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        "wan": {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
        | {"freq_dim": 16, "patch_size": [1, 2, 2]},
        "resampler": {"num_queries": 8, "dim": 32, "layers": 1, "heads": 2, "head_dim": 16, "output_dim": 32},
        "llm": {
            "model_type": "mistral",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "dtype": "bfloat16",
        },
        "short_llm": {"num_hidden_layers": 1},
        "batch": {"clips": 2, "captions": 2, "others": 4},
        "head_batch": {"clips": 1, "tokens": 4},
    },
}


def tokenizer_recipe(size: str, inputs: Path, run: Path, device: str, *, denoiser: str, checkpointing: bool) -> Changes:
    """Return the paper's tokenizer pretraining, with DynamiCrafter's U-Net or with Wan in its place."""
    sizes = SIZES[size]
    unet = {"config": sizes["unet"], "gradient_checkpointing": checkpointing}
    vae = {"config": sizes["vae"], "scale": 0.18215}
    model: Changes = {
        "tokenizer.vision": {"class_path": "clip", "init_args": sizes["vision"]},
        **{f"tokenizer.{name}": value for name, value in sizes["tokenizer"].items()},
        "detokenizer.latents": {"class_path": "image_vae", "init_args": vae},
        "detokenizer.denoiser": {"class_path": "dynamicrafter", "init_args": unet},
        "detokenizer.size": sizes["pixels"],
    }
    if sizes["resampler"]:
        model["detokenizer.condition_resampler"] = sizes["resampler"]
    if denoiser == "wan":
        latents = {"vae": "AutoencoderKLWan", "config": sizes["wan_vae"], "batch_size": 1}
        wan = {"config": sizes["wan"], "training": "lora", "lora_rank": 64, "gradient_checkpointing": checkpointing}
        model |= {
            "detokenizer.latents": {"class_path": "video_vae", "init_args": latents},
            "detokenizer.denoiser": {"class_path": "wan", "init_args": wan},
            "detokenizer.objective": {"class_path": "rectified_flow", "init_args": {"shift": 3.0}},
        }
    data = {"train": [{"path": str(inputs / "videos")}], "batch_size": sizes["batch"]["clips"]}
    return _changed("paper/tokenizer_pretraining", run, device, size, model, data)


def llm_recipe(
    size: str,
    inputs: Path,
    run: Path,
    device: str,
    *,
    tokenizer: Path,
    packed_to: int | None = None,
    short: bool = False,
    attention: str = "auto",
) -> Changes:
    """Return the paper's LLM pretraining; with `packed_to` captions of videos alone, in rows of that length."""
    sizes = SIZES[size]
    captions, others = sizes["batch"]["captions"], sizes["batch"]["others"]
    videos, pictures = str(inputs / "videos"), str(inputs / "pictures")
    train: list[Changes] = [
        {"path": videos, "weight": 1.3, "batch_size": captions, "max_clips": 20, "tasks": {"caption": 1.0}},
        {"path": videos, "weight": 1.0, "batch_size": others, "max_length": 180, "tasks": {"generate": 1.0}},
        {"path": pictures, "weight": 0.3, "batch_size": others, "max_length": 300, "tasks": {"caption": 1.0}},
        {"path": pictures, "weight": 0.3, "batch_size": others, "max_length": 180, "tasks": {"generate": 1.0}},
    ]
    model: Changes = {
        "previous": str(tokenizer),
        "llm.language_model": None,
        "llm.language_model_config": sizes["llm"] | (sizes["short_llm"] if short else {}),
        "llm.text_tokenizer": str(inputs / "text_tokenizer"),
        "llm.initial_values": "spread",
        "llm.frozen_dtype": "stored",
        "llm.attention": attention,
    }
    if packed_to:
        model["llm.max_length"] = packed_to
        train = train[:1]
    return _changed("paper/llm_pretraining", run, device, size, model, {"train": train})


def _changed(name: str, run: Path, device: str, size: str, model: Changes, data: Changes) -> Changes:
    recipe: Changes = yaml.safe_load((recipes_dir() / f"{name}.yaml").read_text())
    pixels, workers = SIZES[size]["pixels"], 8 if size == "full" else 0
    recipe["run"] = str(run)
    recipe["trainer"] |= {"accelerator": device, "devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": 10_000}
    recipe["trainer"]["log_every_n_steps"] = 1
    recipe["checkpoint"] = {"every_steps": 10_000}
    for key, value in model.items():
        _set(recipe["model"]["init_args"], key, value)
    for key, value in {**data, "num_workers": workers, "clip.height": pixels, "clip.width": pixels}.items():
        _set(recipe["data"]["init_args"], key, value)
    for key in ("min_side", "min_picture_side", "min_aspect"):
        recipe["data"]["init_args"]["clip"].pop(key, None)
    return recipe


def _set(settings: Changes, key: str, value: Any) -> None:
    *folders, name = key.split(".")
    for folder in folders:
        settings = settings.setdefault(folder, {})
    settings[name] = value
