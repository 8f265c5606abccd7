"""Raw samples to decoded ones, and decoded ones to what a stage trains on.

Shape letters: B batch, M clips of a batch, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from divot_datamodules.clip_sampling import ClipSettings, decode_clip, image_clip
from divot_datamodules.decoding import IMAGE_SUFFIXES, DecodeError
from divot_datamodules.shard_reading import FEATURE_SUFFIX, MEDIA_SUFFIXES, RawSample
from divot_datamodules.tasks import TASKS, MissingText, Template
from divot_lightning.errors import UserError
from divot_lightning.models.sequences import Segment


class SampleError(Exception):
    """A sample cannot be used.

    Attributes:
        reason: Short fixed name; the ledger counts by it.
        detail: What was seen.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass
class Sample:
    """A decoded sample.

    Attributes:
        key: The sample's key.
        text: Its json, or {"caption": ...} from a txt; {} where it has none.
        kind: What its media are.
        video: uint8 (N, F, 3, H, W), its N clips; None if it holds features.
        features: float32 (N, Q, C); None if it holds video.
        only_choice: Whether decoding it again would give the same.
    """

    key: str
    text: dict[str, Any]
    kind: Literal["video", "image"] = "video"
    video: Tensor | None = None
    features: Tensor | None = None
    only_choice: bool = True

    @property
    def num_clips(self) -> int:
        """Number of clips."""
        media = self.video if self.video is not None else self.features
        return 0 if media is None else len(media)

    @property
    def num_bytes(self) -> int:
        """Memory of the media."""
        return sum(media.nbytes for media in (self.video, self.features) if media is not None)


def sample_rng(seed: int, pass_number: int, key: str) -> np.random.Generator:
    """Returns the generator of one sample in one pass, the same in whichever process it is read."""
    return np.random.default_rng([seed, pass_number, zlib.crc32(key.encode("utf-8", "surrogateescape"))])


def read_text(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Reads a sample's json, or its txt as a caption; {} if it has neither.

    Raises:
        SampleError: "bad_json", "not_utf8".
    """
    try:
        if "json" in members:
            text = json.loads(members["json"].decode("utf-8"))
            if not isinstance(text, dict):
                raise SampleError("bad_json", f"a {type(text).__name__}, not an object")
            return text
        return {"caption": members["txt"].decode("utf-8").strip()} if "txt" in members else {}
    except UnicodeDecodeError as error:
        raise SampleError("not_utf8", str(error)) from error
    except ValueError as error:
        raise SampleError("bad_json", str(error)) from error


def _media(members: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """Returns a sample's media with their suffix: its numbered clips in order, or the one file it has."""
    numbered = sorted((s for s in members if s.startswith("clip")), key=lambda s: int(s.split(".")[0][4:]))
    names = numbered or [suffix for suffix in MEDIA_SUFFIXES if suffix in members][:1]
    return [(name.split(".")[-1], members[name]) for name in names]


@dataclass
class SampleDecoder:
    """Decodes samples.

    Attributes:
        clip: How clips are cut.
    """

    clip: ClipSettings = field(default_factory=ClipSettings)

    def __call__(self, raw: RawSample, rng: np.random.Generator | None) -> Sample:
        """Decodes one sample.

        Args:
            raw: The sample from the shard.
            rng: Draws where clips start; without it they are the ones in the middle.

        Raises:
            SampleError: The sample cannot be used.
        """
        text = read_text(raw.members)
        if FEATURE_SUFFIX in raw.members:
            kind: Literal["video", "image"] = "image" if text.get("kind") == "image" else "video"
            return Sample(raw.key, text, kind, features=_read_features(raw.members[FEATURE_SUFFIX]))
        media = _media(raw.members)
        if not media:
            raise SampleError("missing_media", f"has {sorted(raw.members)}")
        images = [suffix in IMAGE_SUFFIXES for suffix, _ in media]
        try:
            clips = [
                image_clip(data, self.clip) if image else decode_clip(data, self.clip, rng)
                for image, (_, data) in zip(images, media, strict=True)
            ]
        except DecodeError as error:
            raise SampleError(error.reason, error.detail) from error
        video = torch.from_numpy(np.stack([clip.video for clip in clips]))
        only_choice = all(clip.only_choice for clip in clips)
        return Sample(raw.key, text, "image" if all(images) else "video", video=video, only_choice=only_choice)


def _read_features(data: bytes) -> Tensor:
    try:
        tokens = load_safetensors(data)["tokens"]
    except Exception as error:  # safetensors raises its own error type, which it does not export everywhere
        raise SampleError("bad_features", str(error)) from error
    if tokens.ndim not in (2, 3) or tokens.dtype != torch.float32:
        raise SampleError("bad_features", f"{tokens.dtype} {tuple(tokens.shape)}")
    return tokens.reshape(-1, *tokens.shape[-2:])


@dataclass
class TaskMixture:
    """Draws a task for a sample and builds its segments.

    Attributes:
        weights: Task name to weight, greater than 0; a sample takes part in the tasks that its texts allow.
        template: Bare pretraining forms, or instructions.
    """

    weights: dict[str, float]
    template: Template = "pretraining"

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in TASKS:
                raise UserError(f"tasks names {name!r}; known tasks: {', '.join(TASKS)}.")
            if not weight > 0:
                raise UserError(f"tasks gives {name!r} the weight {weight}; it must be greater than 0, or left out.")
        if not self.weights:
            raise UserError(f"tasks is empty; name at least one of {', '.join(TASKS)} with its weight.")

    def segments(self, sample: Sample, rng: np.random.Generator) -> list[Segment]:
        """Builds a sample's segments.

        Args:
            sample: Decoded.
            rng: Draws the task and what the task leaves open.

        Raises:
            SampleError: "missing_caption" if its texts allow none of the tasks.
        """
        names = list(self.weights)
        # The whole order is drawn, so that a task that is impossible gives way to the others by their weights.
        keys = rng.exponential(size=len(names)) / np.array([self.weights[name] for name in names])
        missing = []
        for name in (names[place] for place in np.argsort(keys)):
            try:
                return TASKS[name](
                    sample.text, rng, template=self.template, num_clips=sample.num_clips, kind=sample.kind
                )
            except MissingText as error:
                missing.append(f"{name}: {error.detail}")
        raise SampleError("missing_caption", "; ".join(missing))


Item = dict[str, Any]


def tokenizer_items(sample: Sample) -> list[Item]:
    """Turns a sample into items for the (de-)tokenizer stages: each of its clips by itself."""
    if sample.video is None:
        raise UserError(
            f"sample {sample.key!r} holds cached features, but this stage trains on pixels; "
            "give it the shards that the features were made from."
        )
    suffixes = [""] if sample.num_clips == 1 else [f".clip{number}" for number in range(sample.num_clips)]
    return [{"key": sample.key + suffix, "video": clip} for suffix, clip in zip(suffixes, sample.video, strict=True)]


def collate(items: list[Item]) -> dict[str, Any]:
    """Makes a batch.

    Returns:
        "key" (B strings) and "video" (uint8, (B, F, 3, H, W)) for the (de-)tokenizer stages; for the LLM stages
        "segments" (B lists) as well and "video" (M, F, 3, H, W) or "features" (float32, (M, Q, C)) of all M clips in
        order of appearance.
    """
    batch: dict[str, Any] = {"key": [item["key"] for item in items]}
    if "segments" not in items[0]:
        return {**batch, "video": torch.stack([item["video"] for item in items])}
    batch["segments"] = [item["segments"] for item in items]
    media = [name for name in ("video", "features") if name in items[0]]
    if any(set(item) != set(items[0]) for item in items):
        raise UserError("a batch would mix videos and cached features; take one kind of shards for a stage.")
    return {**batch, **{name: torch.cat([item[name] for item in items]) for name in media}}
