"""Import Divot's released de-tokenizer, and DynamiCrafter's checkpoint that it was trained from."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from divot_backbones.denoisers.dynamicrafter.denoiser import DynamiCrafter
from divot_backbones.denoisers.dynamicrafter.model import DynamiCrafterUNet
from divot_backbones.latents.image_vae import ImageVAELatents
from divot_backbones.objectives.ddim import VPrediction
from divot_lightning.interop.conversion import convert, ignored_reasons
from divot_lightning.interop.folders import Imported, count_numbers, import_component, require_new, whole_folder
from divot_lightning.interop.released_files import read_released
from divot_lightning.interop.released_keys import RESAMPLER_RULES, KeyTable, with_prefixes
from divot_lightning.interop.unet_keys import RELEASED_UNET, unet_rules
from divot_lightning.interop.vae_keys import RELEASED_VAE, SD_VAE, VAE_IGNORED, vae_rules
from divot_lightning.models.detokenizer.config import ConditionResamplerConfig, DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer

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


def released_detokenizer() -> DetokenizerConfig:
    """Return the config of Divot's released de-tokenizer; parts that it does not mention have released defaults."""
    return DetokenizerConfig(
        latents=partial(ImageVAELatents, config=SD_VAE),
        denoiser=partial(DynamiCrafter, config={}, gradient_checkpointing=True),
        objective=partial(VPrediction, last_step="first_noise_level", half_precision_schedule=True),
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
    require_new(folder)
    released = read_released(file)
    with init_empty_weights():
        module = VideoDetokenizer(config or released_detokenizer())
    return import_component(released, detokenizer_table(module), module, file, folder)


def detokenizer_table(module: VideoDetokenizer) -> KeyTable:
    """Return the names of a released de-tokenizer with the sizes of a module -> the module's."""
    unet: Any = module.denoiser.model
    vae: Any = module.latents.vae
    rules = {
        **with_prefixes(unet_rules(unet.config), RELEASED_UNET, "denoiser.model."),
        **with_prefixes(RESAMPLER_RULES, "image_proj_model.", "resampler."),
        **with_prefixes(vae_rules(len(vae.config.block_out_channels)), RELEASED_VAE, "latents.vae."),
    }
    return KeyTable("de-tokenizer", rules, {**SCHEDULE_IGNORED, **VAE_IGNORED})


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
    require_new(folder)
    weights_of_file = read_released(file)
    with init_empty_weights():
        models: dict[str, Any] = {"unet": DynamiCrafterUNet(**(unet or {})), "vae": AutoencoderKL(**(vae or SD_VAE))}
    prefixes = {"unet": f"model.{RELEASED_UNET}", "vae": RELEASED_VAE}
    rules = {
        "unet": unet_rules(models["unet"].config),
        "vae": vae_rules(len(models["vae"].config.block_out_channels)),
    }
    common = {**SCHEDULE_IGNORED, **VAE_IGNORED, **DYNAMICRAFTER_IGNORED}
    released = _without_image_input(weights_of_file, models["unet"].config.in_channels)
    weights = {}
    for name, model in models.items():
        others = {prefixes[other]: "" for other in models if other != name}
        table = KeyTable(f"DynamiCrafter's {name}", with_prefixes(rules[name], prefixes[name], ""), common | others)
        weights[name] = convert(released, table, model, file)
    with whole_folder(folder) as work:
        for name, model in models.items():
            model.save_config(work / name)
            save_file(weights[name], work / name / "diffusion_pytorch_model.safetensors")
    numbers = sum(count_numbers(each) for each in weights.values())
    return Imported(Path(folder), numbers, ignored_reasons(released, KeyTable("", {}, common)))


def _without_image_input(released: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Keep the first input channels of the U-Net, the noisy latents; the others belong to the conditional image."""
    name = f"model.{RELEASED_UNET}input_blocks.0.0.weight"
    return {**released, name: released[name][:, :channels]} if name in released else dict(released)
