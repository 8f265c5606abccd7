"""Describe how a toy score was measured: its data and versions, and the measured weights and features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.shards.reading import expand_shards
from divot_lightning.evaluation.protocol import library_versions
from divot_lightning.evaluation.question_runner import RESIZE
from divot_lightning.evaluation.run import describe_model, weights_kind
from divot_lightning.io.files import file_sha256


def describe_data(clips: str) -> dict[str, Any]:
    """Return the split of held-out clips, the hash of each of their shards, and the versions of libraries.

    Args:
        clips: Folder of shards, or another setting of shards on this machine.
    """
    return {"split": Path(clips).name, "files": shard_hashes(clips), "versions": library_versions()}


def describe_clips(settings: ClipConfig) -> dict[str, Any]:
    """Return the settings that cut clips from videos, as JSON values."""
    cut = {"frames": settings.frames, "fps": settings.fps, "height": settings.height, "width": settings.width}
    return {"clips": {**cut, "resize": RESIZE}}


def shard_hashes(shards: str) -> dict[str, str]:
    """Return the SHA-256 of each shard by its name."""
    return {Path(shard).name: file_sha256(shard) for shard in expand_shards(shards)}


def describe_run(
    run: str, components: Sequence[str], detokenizer: str | None = None, features: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description of a measured run.

    Args:
        run: Run folder.
        components: Names of the components that are used.
        detokenizer: Run folder of the de-tokenizer, if it comes from another run.
        features: Feature shards by name, used in place of the tokenizer.

    Returns:
        The entries of the protocol (whether weights are averaged), and those of the model: hashes of the components and
        of the features.
    """
    model = describe_model(run, components, detokenizer)
    hashes = {name: shard_hashes(shards) for name, shards in (features or {}).items()}
    return {"weights": weights_kind(run, components, detokenizer)}, {**model, **hashes}
