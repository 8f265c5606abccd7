"""Component folders of de-tokenizers from before latents, denoiser and objective were parts. No torch in here."""

from typing import Any

from divot_lightning.errors import UserError

_BLOCK_DCT = ("block_size", "luma_frequencies", "chroma_frequencies", "scale")
_DIFFUSERS = {"UNet3DConditionModel": "UNet3D", "LatteTransformer3DModel": "Latte", "WanTransformer3DModel": "Wan"}


def detokenizer_of_parts(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a de-tokenizer from before its latents, denoiser and objective were parts."""
    latents, schedule, sampling = (dict(config[name]) for name in ("latents", "noise_schedule", "sampling"))
    kept = ("scale", "pretrained") if latents["kind"] == "vae" else _BLOCK_DCT
    predictions = {"v_prediction": "VPrediction", "epsilon": "Epsilon", "sample": "X0"}
    objective = f"divot_backbones.objectives.ddim.{predictions[schedule.pop('prediction')]}"
    moved = {name: sampling.pop(name) for name in ("eta", "spacing")}
    vae = "image_vae.ImageVAELatents" if latents["kind"] == "vae" else "block_dct.BlockDCTLatents"
    parts = {
        "latents": _part(f"divot_backbones.latents.{vae}", {name: latents[name] for name in kept}),
        "denoiser": _denoiser_part(config["denoiser"]),
        "objective": _part(objective, {**schedule, **moved}),
        "sampling": sampling,
    }
    return {name: value for name, value in {**config, **parts}.items() if name != "noise_schedule"}


def _denoiser_part(denoiser: dict[str, Any]) -> dict[str, Any]:
    if "diffusers_class" not in denoiser:
        return _part("divot_backbones.denoisers.video_dit.VideoDiT", denoiser)
    name = denoiser["diffusers_class"]
    if name not in _DIFFUSERS:
        raise UserError(f"a de-tokenizer with the denoiser {name} is of an earlier version, and no part builds it")
    settings = {"config": denoiser["arguments"], "gradient_checkpointing": denoiser["gradient_checkpointing"]}
    return _part(f"divot_backbones.denoisers.diffusers_denoiser.{_DIFFUSERS[name]}", settings)


def _part(class_path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}
