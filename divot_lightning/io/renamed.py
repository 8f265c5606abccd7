"""Names of earlier versions that recipes, run folders, component folders and plug-ins may still hold. No torch in here.

A recipe or a `config.yaml` with an old name is refused, and the message gives the new name; see `old_recipes`.
Component folders with old names are read through these tables, since a `config.json` is not edited by hand.
"""

import re
from collections.abc import Collection
from typing import Any

from divot_lightning.io.old_detokenizer import detokenizer_of_parts

MODULES = {
    "divot_lightning.stages.captioning_pretraining": "divot_lightning.training.stages.captioning_pretraining",
    "divot_lightning.stages.detokenizer_adaptation": "divot_lightning.training.stages.detokenizer_adaptation",
    "divot_lightning.stages.detokenizer_refinement": "divot_lightning.training.stages.detokenizer_refinement",
    "divot_lightning.stages.instruction_tuning": "divot_lightning.training.stages.instruction_tuning",
    "divot_lightning.stages.llm_pretraining": "divot_lightning.training.stages.llm_pretraining",
    "divot_lightning.stages.tokenizer_pretraining": "divot_lightning.training.stages.tokenizer_pretraining",
    "divot_lightning.stages.stage": "divot_lightning.training.stages.stage",
    "divot_lightning.stages.video_llm_stage": "divot_lightning.training.stages.video_llm_stage",
    "divot_lightning.stages.video_llm_step": "divot_lightning.training.stages.video_llm_step",
    "divot_lightning.stages.optimization": "divot_lightning.training.optimization",
    "divot_lightning.models.tokenizer": "divot_lightning.models.tokenizer.video_tokenizer",
    "divot_lightning.models.detokenizer": "divot_lightning.models.detokenizer.video_detokenizer",
    "divot_lightning.models.tokenizer.vision_backbone": "divot_backbones.vision.clip",
    "divot_lightning.models.video_llm": "divot_lightning.models.video_llm.model",
    "divot_lightning.models.noise_schedule": "divot_backbones.objectives.ddim",
    "divot_lightning.models.detokenizer.noise_schedule": "divot_backbones.objectives.ddim",
    "divot_lightning.models.detokenizer.latents": "divot_backbones.latents.block_dct",
    "divot_lightning.models.detokenizer.video_dit": "divot_backbones.denoisers.video_dit",
    "divot_lightning.heads": "divot_lightning.parts.heads",
    "divot_lightning.head_options": "divot_lightning.inference.command_options",
    "divot_lightning.head_sampling": "divot_lightning.parts.sampling",
    "divot_lightning.parts.head_sampling": "divot_lightning.parts.sampling",
    "divot_lightning.registry": "divot_lightning.parts.registries.registry",
    "divot_lightning.sharding.rng_state": "divot_lightning.checkpoint.rng_state",
    "divot_lightning.sharding.step_checkpoint": "divot_lightning.checkpoint.step_checkpoint",
    "divot_lightning.sharding.weight_average": "divot_lightning.checkpoint.weight_average",
    "divot_lightning.sharding.preemption": "divot_lightning.distributed.signals",
    "divot_lightning.sharding.building": "divot_lightning.models.weights",
    "divot_lightning.distributed.meta_building": "divot_lightning.models.weights",
    "divot_lightning.sharding.same_start": "divot_lightning.distributed.same_start",
    "divot_lightning.sharding.strategy": "divot_lightning.deepspeed_zero.strategy",
    "divot_lightning.runs.run_callbacks": "divot_lightning.training.reporting.run_callbacks",
    "divot_lightning.runs.run_logging": "divot_lightning.training.reporting.run_logging",
    "divot_lightning.training.optimizers": "divot_optimizers.adamw",
    "divot_datamodules.clip_sampling": "divot_datamodules.decoding.clip_sampling",
    "divot_datamodules.position_callback": "divot_datamodules.loading.position_callback",
    "divot_datamodules.samples": "divot_datamodules.decoding.samples",
    "divot_datamodules.source_settings": "divot_datamodules.shards.source_settings",
    "divot_datamodules.sources": "divot_datamodules.shards.sources",
    "divot_datamodules.tasks": "divot_datamodules.tasks.built_in",
    "divot_datamodules.tasks.segments": "divot_datamodules.tasks.built_in",
}
"""Old module to new one, for the modules whose classes a file of a user can name, or a plug-in imports."""

CLASSES = {
    "divot_backbones.vision.clip.VisionBackbone": "divot_backbones.vision.clip.ClipVision",
    "divot_lightning.parts.heads.float32_island": "divot_lightning.parts.heads.force_float32",
    "divot_lightning.training.optimization.OptimizerSettings": "divot_optimizers.adamw.AdamWOptimizer",
    "divot_lightning.training.optimization.OptimizerConfig": "divot_optimizers.adamw.AdamWOptimizer",
    "divot_optimizers.adamw.MuonOptimizer": "divot_optimizers.muon.MuonOptimizer",
    "divot_optimizers.adamw.JointOptimizer": "divot_optimizers.muon.JointOptimizer",
    "divot_datamodules.decoding.clip_sampling.ClipSettings": "divot_datamodules.decoding.clip_sampling.ClipConfig",
    "divot_datamodules.decoding.sample_errors.SampleError": "divot_lightning.parts.sources.SampleError",
    "divot_datamodules.decoding.samples.TaskMixture": "divot_datamodules.tasks.mixture.TaskMixture",
    "divot_datamodules.loading.skipped_samples.SkippedSample": "divot_lightning.parts.sources.SkippedSample",
    "divot_datamodules.shards.reading.RawSample": "divot_lightning.parts.sources.RawSample",
    "divot_datamodules.shards.reading.read_shard": "divot_datamodules.shards.sources.read_all",
    "divot_datamodules.shards.source_settings.Source": "divot_datamodules.shards.source_settings.SourceConfig",
    "divot_datamodules.shards.sources.SampleSource": "divot_lightning.parts.sources.Source",
    "divot_datamodules.decoding.video.decode_chosen": "divot_datamodules.decoding.video.decode_frames",
    "divot_datamodules.toy.world.Reading": "divot_datamodules.toy.oracle.Reading",
    "divot_lightning.checkpoint.components.find_component": "divot_lightning.checkpoint.run_components.find_component",
}
"""Classes and functions that were renamed as well, under their new modules."""

SETTINGS = {
    "model.terminal_share": "terminal_timestep_prob",
    "model.terminal_share_end": "terminal_timestep_prob_end",
    "model.llm.mechanism": "generation_mode",
    "data.train_share": "train_fraction",
    "data.max_bad_fraction": "max_skipped_fraction",
    "data.max_bad_samples": "max_skipped_samples",
    "data.ledger_folder": "skipped_folder",
}
"""Settings of a recipe, spelt as on the command line, to the new name of the last word."""

DETOKENIZER_PARTS = {
    "model.detokenizer.latents.kind": "latents: block_dct, or image_vae (was vae), with its settings under init_args",
    "model.detokenizer.denoiser.diffusers_class": "denoiser: unet3d, latte, wan or another part of `divot parts "
    "denoisers`, with the model's arguments under init_args.config",
    "model.detokenizer.noise_schedule": "objective: v_prediction, epsilon or x0, with its settings under init_args",
    "model.detokenizer.sampling.eta": "objective.init_args.eta",
    "model.detokenizer.sampling.spacing": "objective.init_args.spacing",
}
"""Settings of the de-tokenizer, spelt as on the command line, to the part of `model.detokenizer` that has them now."""

OLD_SKIPPED = "defects"
"""What `skipped` was in the names of files and folders that list skipped samples, and in indexes of shards. Both are
still read."""

RECIPES = {
    "ablations/data_share": "ablations/data_fraction",
    "ablations/mechanism": "ablations/generation_mode",
    "ablations/paper/data_share": "ablations/paper/data_fraction",
    "ablations/paper/mechanism": "ablations/paper/generation_mode",
}
"""Shipped recipes."""

BENCHMARKS = {
    "toy-batch-generation": "'toy' with generation.one_seed and generation.detokenizer; clips is now data",
    "toy-batch-reconstruction": "'toy-reconstruction' with generation.one_seed; clips is now data",
}
"""Measurements of an experiment to the benchmark that they became."""

ENTRIES = {"said": "prediction", "made": "generated"}
"""Entries of `predictions.jsonl`, and of the `clips.npz` beside it; old files are still read."""

OLD_TRIALS = "cells"
"""Folder of the trials in experiments that an earlier version began; they continue there."""

OLD_VISION = "divot_backbones.vision.clip.ClipVision"
"""The vision encoder of tokenizers whose `vision` holds its settings alone, from the time when there was only one."""

OUR_PACKAGES = ("divot_lightning", "divot_datamodules", "divot_backbones", "divot_optimizers")
_NO_MODULE = re.compile(r"No module named '([^']+)'")
_NO_NAME = re.compile(r"cannot import name '([^']+)' from '([^']+)'")
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")


def new_class_path(path: str) -> str | None:
    """Return the class path that an old one became, None for a path that was not renamed.

    >>> new_class_path("divot_lightning.models.tokenizer.VideoTokenizer")
    'divot_lightning.models.tokenizer.video_tokenizer.VideoTokenizer'
    """
    module, dot, name = path.rpartition(".")
    current = f"{MODULES.get(module, module)}{dot}{name}"
    current = CLASSES.get(current, current)
    return current if current != path else None


def new_setting(name: str, allowed: Collection[str]) -> str | None:
    """Return what an old setting is called now.

    Args:
        name: The last word of the setting, such as `terminal_share`.
        allowed: The settings that its owner has, so that a stranger's setting of the same name is left alone.
    """
    return next((new for old, new in SETTINGS.items() if old.endswith(f".{name}") and new in allowed), None)


def explain(name: str) -> str:
    """Return one sentence about an old class path, module or package, empty for a name that was not renamed.

    >>> explain("divot_lightning.heads")
    'divot_lightning.heads is now divot_lightning.parts.heads'
    >>> explain("divot_lightning.runs")
    'the modules of divot_lightning.runs are now in divot_lightning.training.reporting'
    """
    current = MODULES.get(name) or new_class_path(name)
    if current:
        return f"{name} is now {current}"
    homes = {new.rpartition(".")[0] for old, new in MODULES.items() if old.startswith(f"{name}.")}
    is_gone = homes and not any(f"{new}.".startswith(f"{name}.") for new in MODULES.values())
    return f"the modules of {name} are now in {', '.join(sorted(homes))}" if is_gone else ""


def explain_import_error(message: str) -> str:
    """Return one sentence about the old name that a failed import was after, empty where there is none.

    >>> explain_import_error("No module named 'divot_lightning.heads'")
    'divot_lightning.heads is now divot_lightning.parts.heads'
    """
    if found := _NO_MODULE.search(message):
        return explain(found[1])
    if found := _NO_NAME.search(message):
        return explain(f"{found[2]}.{found[1]}")
    found = _NO_ATTRIBUTE.search(message)
    return explain(f"{found[1]}.{found[2]}") if found else ""


def current_component(described: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a component's `config.json` with today's names.

    Args:
        described: Has `class`, a class path, and `config`, the settings; one without old names is returned as it is.
    """
    config = described["config"]
    if isinstance(vision := config.get("vision"), dict) and "class_path" not in vision:
        part = {"class_path": OLD_VISION, "init_args": vision, "image_size": vision["image_size"], "frame_stride": 1}
        described = {**described, "config": {**config, "vision": part}}
    if "noise_schedule" in config and described["class"].endswith(".VideoDetokenizer"):
        described = {**described, "config": detokenizer_of_parts(config)}
    current = new_class_path(described["class"])
    config = described["config"]
    if current is not None:
        renamed = {old.rpartition(".")[2]: new for old, new in SETTINGS.items()}
        config = {renamed.get(name, name): value for name, value in config.items()}
    if "head_class" in config:
        head = {"class_path": config["head_class"], "init_args": config.get("head_init_args", {})}
        config = {name: value for name, value in config.items() if not name.startswith("head_")} | {"head": head}
    return {**described, "class": current or described["class"], "config": config}
