"""Read from a run's config how its data were prepared, so that inference prepares its input in the same way."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.frame_pixels import Resize
from divot_lightning.checkpoint.components import load_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.tasks import Template
from divot_lightning.training.run_folder import CONFIG, read_data_config


def run_template(run: str | Path) -> Template:
    """Return the form of the prompts that a run was trained on, "pretraining" if its config does not say."""
    return str(read_data_config(run).get("template") or "pretraining")


def run_tasks(run: str | Path) -> dict[str, dict[str, Any]]:
    """Return the tasks of all sources that a run was trained on, each with its settings; empty if it does not say.

    Prompts are written with these settings, so that they are those of the training. If sources have the same task with
    other settings, those of the first one count.
    """
    config = read_data_config(run)
    train = config.get("train")
    sources = [source for source in train if isinstance(source, dict)] if isinstance(train, list) else []
    found: dict[str, dict[str, Any]] = {}
    for tasks in [source.get("tasks") or config.get("tasks") for source in sources] or [config.get("tasks")]:
        for name, entry in tasks.items() if isinstance(tasks, dict) else ():
            settings = entry.get("init_args") if isinstance(entry, dict) else None
            found.setdefault(str(name), dict(settings or {}))
    return found


def run_fps(run: str | Path) -> float:
    """Return the frames per second of a run's clips; Divot's 8 if its config does not say."""
    return float(_stated_clip(run).fps)


def run_resize(run: str | Path) -> Resize:
    """Return the filter that resizes a run's frames; "bicubic" if its config does not say."""
    return _stated_clip(run).resize


def run_short_videos(run: str | Path) -> Literal["refuse", "squeeze"]:
    """Return what a run does with videos that are shorter than a clip; "refuse" if its config does not say."""
    return _stated_clip(run).short_videos


def run_clip_config(run: str | Path, tokenizer: TokenizerConfig) -> ClipConfig:
    """Return how clips are cut for a run; if its config does not say, in the size that the tokenizer reads.

    Args:
        run: Run folder.
        tokenizer: Config of its tokenizer.

    Returns:
        The config; short videos are squeezed, not refused, and have only as many clips as fit; media may be small.
    """
    stated = _stated_clip(run, height=tokenizer.image_size, width=tokenizer.image_size)
    any_size = {"min_side": 1, "min_picture_side": 1, "min_aspect": 0.0}
    return replace(stated, short_videos="squeeze", cover="consecutive", **any_size)  # type: ignore[arg-type]


def _stated_clip(run: str | Path, **defaults: int) -> ClipConfig:
    stored, known = read_data_config(run).get("clip") or {}, {entry.name for entry in fields(ClipConfig)}
    try:
        return ClipConfig(**{**defaults, **{name: value for name, value in stored.items() if name in known}})
    except (TypeError, AttributeError) as error:
        raise UserError(f"{Path(run) / CONFIG}: data.clip holds no settings of clips: {stored!r:.100}") from error


def load_tokenizer(run: str | Path) -> VideoTokenizer:
    """Load the tokenizer that a run trained or used, in evaluation mode."""
    return load_component(find_component(run, "tokenizer"), VideoTokenizer).eval()
