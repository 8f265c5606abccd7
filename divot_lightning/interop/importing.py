"""Turn downloaded checkpoints into folders that recipes and commands can use.

Every name of a file is used or ignored for a stated reason, and a folder appears whole or not at all.
"""

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from divot_backbones.denoisers.dynamicrafter.denoiser import DynamiCrafter
from divot_backbones.denoisers.dynamicrafter.model import DynamiCrafterUNet
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.objectives.ddim import VPrediction
from divot_lightning.checkpoint.components import new_component
from divot_lightning.errors import UserError
from divot_lightning.interop.conversion import convert, ignored_reasons
from divot_lightning.interop.openclip_keys import CLIP, VIT_H_14, split_projections
from divot_lightning.interop.released_files import read_released
from divot_lightning.interop.released_keys import RESAMPLER_RULES, KeyTable, with_prefixes
from divot_lightning.interop.unet_keys import RELEASED_UNET, unet_rules
from divot_lightning.interop.vae_keys import RELEASED_VAE, SD_VAE, VAE_IGNORED, vae_rules
from divot_lightning.models.detokenizer.video_detokenizer import (
    ConditionResamplerConfig,
    DetokenizerConfig,
    VideoDetokenizer,
)

SCHEDULE_IGNORED = {
    prefix: "noise schedule, which is computed from its settings"
    for prefix in (
        "alphas_cumprod",
        "betas",
        "log_one_minus_alphas_cumprod",
        "logvar",
        "lvlb_weights",
        "posterior_",
        "scale_arr",
        "sqrt_",
    )
}

DYNAMICRAFTER_IGNORED = {
    "cond_stage_model.": "text encoder: the condition is Divot's tokens",
    "embedder.": "image encoder: the condition is Divot's tokens",
    "image_proj_model.": "image resampler: the condition is Divot's tokens",
}


class Imported(NamedTuple):
    """What an import did.

    Attributes:
        folder: The folder that it wrote.
        parameters: Numbers in it.
        ignored: Why names of the file were not used -> number of names.
    """

    folder: Path
    parameters: int
    ignored: dict[str, int]


def released_detokenizer() -> DetokenizerConfig:
    """Return the config of Divot's released de-tokenizer; parts that it does not mention have released defaults."""
    return DetokenizerConfig(
        latents=partial(ImageVAELatents, config=SD_VAE),
        denoiser=partial(DynamiCrafter, config={}, gradient_checkpointing=True),
        objective=VPrediction,
        condition_resampler=ConditionResamplerConfig(),
        num_tokens=64,
        token_dim=256,
    )


def import_detokenizer(file: str | Path, folder: str | Path, config: DetokenizerConfig | None = None) -> Imported:
    """Turn `Divot_detokenizer_stage1.bin` or `..._stage2.bin` into a component folder of a de-tokenizer.

    Args:
        file: The released file, with U-Net, condition resampler and VAE.
        folder: Where to; it must not exist.
        config: Config of the file's de-tokenizer; that of the released one by default.

    Raises:
        UserError: The file is damaged or another one, or the folder exists.
    """
    with init_empty_weights():
        module = VideoDetokenizer(config or released_detokenizer())
    rules = {
        **with_prefixes(unet_rules(module.denoiser.model.config), RELEASED_UNET, "denoiser.model."),
        **with_prefixes(RESAMPLER_RULES, "image_proj_model.", "resampler."),
        **with_prefixes(vae_rules(len(module.latents.vae.config.block_out_channels)), RELEASED_VAE, "latents.vae."),
    }
    table = KeyTable("de-tokenizer", rules, {**SCHEDULE_IGNORED, **VAE_IGNORED})
    return _import_component(read_released(file), table, module, file, folder)


def import_dynamicrafter(
    file: str | Path, folder: str | Path, unet: Mapping[str, Any] | None = None, vae: Mapping[str, Any] | None = None
) -> Imported:
    """Turn DynamiCrafter's checkpoint into two folders of `diffusers`: `unet`, without its image input, and `vae`.

    Args:
        file: DynamiCrafter's `model.ckpt` for 256 pixels.
        folder: Where to; it must not exist.
        unet: Settings of `DynamiCrafterUNet`; the released ones by default.
        vae: Settings of the `AutoencoderKL`; Stable Diffusion's by default.

    Raises:
        UserError: The file is damaged or another one, or the folder exists.
    """
    with init_empty_weights():
        models: dict[str, Any] = {"unet": DynamiCrafterUNet(**(unet or {})), "vae": AutoencoderKL(**(vae or SD_VAE))}
    prefixes = {"unet": f"model.{RELEASED_UNET}", "vae": RELEASED_VAE}
    rules = {
        "unet": unet_rules(models["unet"].config),
        "vae": vae_rules(len(models["vae"].config.block_out_channels)),
    }
    common = {**SCHEDULE_IGNORED, **VAE_IGNORED, **DYNAMICRAFTER_IGNORED}
    released = _without_image_input(read_released(file), models["unet"].config.in_channels)
    weights = {}
    for name, model in models.items():
        others = {prefixes[other]: "" for other in models if other != name}
        table = KeyTable(f"DynamiCrafter's {name}", with_prefixes(rules[name], prefixes[name], ""), common | others)
        weights[name] = convert(released, table, model, file)
    with whole_folder(folder) as work:
        for name, model in models.items():
            model.save_config(work / name)
            save_file(weights[name], work / name / "diffusion_pytorch_model.safetensors")
    numbers = sum(_count(each) for each in weights.values())
    return Imported(Path(folder), numbers, ignored_reasons(released, KeyTable("", {}, common)))


def import_clip(file: str | Path, folder: str | Path, config: Mapping[str, Any] | None = None) -> Imported:
    """Turn OpenCLIP's ViT-H/14 into a folder of a transformers `CLIPModel`.

    Args:
        file: `open_clip_pytorch_model.bin`, or safetensors of the same names.
        folder: Where to; it must not exist.
        config: Arguments of `CLIPConfig`; those of ViT-H/14 by default.

    Raises:
        UserError: The file is damaged or another one, or the folder exists.
    """
    with init_empty_weights():
        model = CLIPModel(CLIPConfig(**(config or VIT_H_14)))
    released = split_projections(read_released(file))
    weights = convert(released, CLIP, model, file)
    with whole_folder(folder) as work:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(work)
        save_file(weights, work / "model.safetensors", {"format": "pt"})
    return Imported(Path(folder), _count(weights), ignored_reasons(released, CLIP))


@contextmanager
def whole_folder(folder: str | Path) -> Generator[Path, None, None]:
    """Write a new folder elsewhere; it is moved into place at the end, and nothing of it is left after an error.

    Args:
        folder: Where it appears.

    Yields:
        Where to write it, beside that place; nothing is there yet.

    Raises:
        UserError: It exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists, and an import overwrites nothing\ngive a new folder, or remove that one")
    work = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work / folder.name
        (work / folder.name).rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _import_component(
    released: Mapping[str, Tensor], table: KeyTable, module: nn.Module, file: str | Path, folder: str | Path
) -> Imported:
    weights = convert(released, table, module, file)
    with whole_folder(folder) as work, new_component(module, work) as weights_file:
        save_file(weights, weights_file)
    return Imported(Path(folder), _count(weights), ignored_reasons(released, table))


def _without_image_input(released: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Keep the first input channels of the U-Net, the noisy latents; the others belong to the conditional image."""
    name = f"model.{RELEASED_UNET}input_blocks.0.0.weight"
    return {**released, name: released[name][:, :channels]} if name in released else dict(released)


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in weights.values())
