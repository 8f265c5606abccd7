"""Checks that cached features are those that a stage would compute itself."""

import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from divot_datamodules.decoding.cached_features import LATENTS_FIELD
from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.shards.reading import is_url
from divot_datamodules.shards.writing import INDEX_NAME, read_index
from divot_lightning.checkpoint.components import part_sha256
from divot_lightning.checkpoint.run_components import find_component, weights_sha256
from divot_lightning.errors import UserError

logger = logging.getLogger(__name__)


def clip_identity(clip: ClipConfig) -> dict[str, Any]:
    """Return the settings that decide a clip's content; `sparse_frames` is not among them."""
    names = ("height", "width", "frames", "fps", "short_videos")
    # Folders of earlier versions have no filter, and were resized by the default one.
    resize = {} if clip.resize == ClipConfig.resize else {"resize": clip.resize}
    return {**{name: getattr(clip, name) for name in names}, **resize}


def check_features(
    shards: Iterable[str], tokenizer: str | Path, clip: ClipConfig | None = None, max_clips: int | None = None
) -> str:
    """Refuse feature shards that another tokenizer made, or that contain other clips; shards of videos are accepted.

    Args:
        shards: Paths and URLs; the index in their folder is compared. If the index behind a URL cannot be read, each
            file of features still names its tokenizer.
        tokenizer: Run or component folder.
        clip: Clip settings of the stage; None for no comparison.
        max_clips: Most clips of a video; None for no comparison.

    Returns:
        SHA-256 of the tokenizer's weights, for `divot_datamodules.decoding.samples.SampleDecoder`.
    """
    component = find_component(tokenizer, "tokenizer")
    sha256 = _sha256(component, (component / "model.safetensors").stat().st_mtime_ns)
    for folder in dict.fromkeys(_folder(shard) for shard in shards if not shard.startswith("pipe:")):
        index = _index(folder)
        if index is None or index.get("kind") != "features":
            continue
        made_by = index["settings"]["tokenizer_sha256"]
        if made_by != sha256:
            raise UserError(
                f"the features in {folder} come from another tokenizer (sha256 {made_by[:16]}...)\n"
                f"than {component} ({sha256[:16]}...).\nRun `divot data encode --tokenizer {tokenizer}` again."
            )
        _check_clips(folder, index["settings"], clip, max_clips)
    return sha256


def check_latents(shards: Iterable[str], detokenizer: str | Path) -> str | None:
    """Refuse shards with cached latents of another de-tokenizer's, and those with features and no latents.

    Args:
        shards: As for `check_features`.
        detokenizer: Component folder of the de-tokenizer that uses them.

    Returns:
        SHA-256 of the de-tokenizer's latents, for `divot_datamodules.decoding.samples.SampleDecoder`; None if no shard
        has latents.
    """
    folders = dict.fromkeys(_folder(shard) for shard in shards if not shard.startswith("pipe:"))
    indexes = {folder: _index(folder) for folder in folders}
    made_by = {folder: (index or {}).get("settings", {}).get(LATENTS_FIELD) for folder, index in indexes.items()}
    for folder, index in indexes.items():
        if index is not None and index.get("kind") == "features" and made_by[folder] is None:
            raise UserError(
                f"{folder} holds cached features, but this stage trains on pixels, or on latents beside the features\n"
                "give it the shards that the features were made from, or run `divot data encode` again, with "
                f"--detokenizer {detokenizer}"
            )
    if not any(made_by.values()) and None not in indexes.values():
        return None
    sha256 = part_sha256(detokenizer, "latents")
    for folder, found in made_by.items():
        if found not in (None, sha256):
            raise UserError(
                f"the latents in {folder} come from other weights or settings (sha256 {found[:16]}...)\n"
                f"than the latents of {detokenizer} ({sha256[:16]}...)\n"
                f"run `divot data encode` again, with --detokenizer {detokenizer}"
            )
    return sha256


def _check_clips(folder: str, settings: dict[str, Any], clip: ClipConfig | None, max_clips: int | None) -> None:
    default = {"resize": ClipConfig.resize}
    expected = {**default, **clip_identity(clip)} if clip is not None else {}
    found = {**default, **settings.get("clip", {})}
    if max_clips is not None:
        expected["max_clips"], found["max_clips"] = max_clips, settings.get("max_clips", 1)
    names = [name for name, value in expected.items() if found.get(name) != value]
    if names:
        differing = ", ".join(f"{name} is {found.get(name)!r}, not {expected[name]!r}" for name in names[:3])
        raise UserError(
            f"the features in {folder} are of other clips than the recipe's: {differing}.\n"
            "Set clip and max_clips of the data to the features', or run `divot data encode` with the recipe's."
        )


def _folder(shard: str) -> str:
    return shard.rpartition("/")[0] if is_url(shard) else str(Path(shard).parent)


def _index(folder: str) -> dict[str, Any] | None:
    if not is_url(folder):
        return read_index(Path(folder))
    try:
        with fsspec.open(f"{folder}/{INDEX_NAME}", "rb") as file:
            index = json.loads(file.read())
    except Exception as error:  # each of fsspec's file systems has its own errors
        logger.info("no %s can be read in %s (%s)", INDEX_NAME, folder, type(error).__name__)
        return None
    return index if isinstance(index, dict) else None


@lru_cache(maxsize=8)
def _sha256(component: Path, changed: int) -> str:
    """Return the hash of a tokenizer's weights, computed once for all sources; `changed` is part of the cache key."""
    return weights_sha256(component)
