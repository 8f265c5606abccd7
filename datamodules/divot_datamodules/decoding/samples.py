"""Raw samples to decoded ones, and decoded ones to what a stage trains on.

Shape letters: B batch, M clips of a batch, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.cached_features import read_features
from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clips, image_picture
from divot_datamodules.decoding.sample_errors import SampleError, decoding_errors
from divot_datamodules.decoding.video import IMAGE_SUFFIXES
from divot_datamodules.shards.reading import FEATURE_SUFFIX, MEDIA_SUFFIXES, RawSample
from divot_datamodules.tasks.segments import ONE_CLIP_TASKS, TASKS, MissingText, Template
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.sequence_limits import SampleLimits
from divot_lightning.parts.segments import Kind, Segment, Text

Members = Mapping[str, bytes | Path]

MAX_SAMPLE_CLIPS = 64
"""Most clips of one sample. More than twice what the longest sequences of the paper hold (1650 tokens, 66 for a clip;
its videos give at most 20 clips, its stories 3). Decoded at 256 x 256, 16 frames each, 64 clips are 201 MB."""

MAX_TEXT_CHARACTERS = 2**20
"""Longest text of a sample, all that its task uses together: some 250,000 tokens, far more than sequences take. A
tokenizer needs about 180 bytes for each character (2.6 GB for 15 MB, measured)."""


@dataclass
class Sample:
    """A decoded sample.

    Attributes:
        key: The sample's key.
        text: Its json, or {"caption": ...} from a txt; {} where it has none.
        kind: What its media are.
        video: uint8 (N, F, 3, H, W), its N clips; None if it holds features.
        features: float32 (N, Q, C); None if it holds video.
        is_deterministic: Whether decoding it again would give the same.
    """

    key: str
    text: dict[str, Any]
    kind: Kind = "video"
    video: Tensor | None = None
    features: Tensor | None = None
    is_deterministic: bool = True

    @property
    def num_clips(self) -> int:
        """Number of clips."""
        media = self.video if self.video is not None else self.features
        return 0 if media is None else len(media)

    @property
    def num_bytes(self) -> int:
        """Memory of the media."""
        kept = (media for media in (self.video, self.features) if media is not None)
        # The frames of a picture share their memory.
        return sum(min(media.nbytes, media.untyped_storage().nbytes()) for media in kept)


def sample_rng(seed: int, pass_number: int, key: str) -> np.random.Generator:
    """Return the generator of one sample in one pass, the same in whichever process it is read."""
    return np.random.default_rng([seed, pass_number, zlib.crc32(key.encode("utf-8", "surrogateescape"))])


def _content(member: bytes | Path) -> bytes:
    """Return a member's bytes; jsonl samples name files."""
    if isinstance(member, bytes):
        return member
    try:
        return member.read_bytes()
    except OSError as error:
        raise SampleError("missing_media", f"{member} cannot be read: {error.strerror}") from error


def read_text(members: Members) -> dict[str, Any]:
    """Read a sample's json, or its txt as a caption; {} if it has neither.

    A byte order mark before either is passed over, as Windows programs write it.

    Raises:
        SampleError: "bad_json"; "not_utf8", also for an escape that stands for half a character.
    """
    try:
        if "json" in members:
            return _read_json(_content(members["json"]).decode("utf-8-sig"))
        return {"caption": _content(members["txt"]).decode("utf-8-sig").strip()} if "txt" in members else {}
    except UnicodeError as error:
        raise SampleError("not_utf8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", str(error)) from error


def _read_json(data: str) -> dict[str, Any]:
    text = json.loads(data)
    if not isinstance(text, dict):
        raise SampleError("bad_json", f"a {type(text).__name__}, not an object")
    if "\\u" in data:
        # Of a pair of escapes such as \ud83d\ude00 one alone, as of an emoji that was cut, is no text.
        json.dumps(text, ensure_ascii=False).encode("utf-8")
    return text


def media_members(members: Members) -> list[tuple[str, bytes | Path]]:
    """Return a sample's media with their suffix: its numbered clips in order, or the one file it has."""
    numbered = sorted((s for s in members if s.startswith("clip")), key=lambda s: int(s.split(".")[0][4:]))
    names = numbered or [suffix for suffix in MEDIA_SUFFIXES if suffix in members][:1]
    return [(name.split(".")[-1], members[name]) for name in names]


@dataclass
class SampleDecoder:
    """Decodes samples.

    Attributes:
        clip: How clips are cut.
        max_clips: 1: a video gives one clip, from a start that is drawn. More: it gives the clips that stand for all of
            it, see `divot_datamodules.decoding.clip_sampling.clip_times`. The numbered videos of a story give one clip each.
        tokenizer_sha256: Refuse cached features that say they come from another tokenizer; None for no check.
        max_sample_clips: Most clips of one sample: videos of a story, or clips in a file of cached features; those that
            `max_clips` allows may always be there.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    max_clips: int = 1
    tokenizer_sha256: str | None = None
    max_sample_clips: int = MAX_SAMPLE_CLIPS

    def __call__(self, raw: RawSample, rng: np.random.Generator | None) -> Sample:
        """Decode one sample.

        Args:
            raw: The sample from the shard.
            rng: Draws where clips start; without it they are the ones in the middle.

        Raises:
            SampleError: The sample cannot be used.
        """
        text = read_text(raw.members)
        if FEATURE_SUFFIX in raw.members:
            kind: Kind = "image" if text.get("kind") == "image" else "video"
            features = read_features(_content(raw.members[FEATURE_SUFFIX]), self.tokenizer_sha256)
            self._refuse_many(len(features))
            return Sample(raw.key, text, kind, features=features)
        media = media_members(raw.members)
        if not media:
            raise SampleError("missing_media", f"has {sorted(raw.members)}")
        self._refuse_many(len(media))
        clips = [self._clips(suffix, data, rng, 1 if len(media) > 1 else self.max_clips) for suffix, data in media]
        video = torch.cat([video for video, _ in clips]) if len(clips) > 1 else clips[0][0]
        kind = "image" if all(suffix in IMAGE_SUFFIXES for suffix, _ in media) else "video"
        return Sample(
            raw.key, text, kind, video=video, is_deterministic=all(is_deterministic for _, is_deterministic in clips)
        )

    def _clips(
        self, suffix: str, media: bytes | Path, rng: np.random.Generator | None, max_clips: int
    ) -> tuple[Tensor, bool]:
        """Return the clips of one file, uint8 (N, F, 3, H, W), and whether it gives no others."""
        with decoding_errors():
            if suffix in IMAGE_SUFFIXES:
                picture = torch.from_numpy(image_picture(media, self.clip))
                return picture.expand(1, len(self.clip.frame_numbers), *picture.shape), True
            clips = decode_clips(media, self.clip, rng, max_clips=max_clips)
            return torch.from_numpy(clips.video), clips.is_deterministic

    def _refuse_many(self, count: int) -> None:
        most = max(self.max_sample_clips, self.max_clips)
        if count > most:
            raise SampleError("too_many_clips", f"{count} clips; max_sample_clips allows {most}")


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
        """Build a sample's segments; see `draw`, which also tells which clips they are about."""
        return self.draw(sample, rng)[0]

    def draw(self, sample: Sample, rng: np.random.Generator) -> tuple[list[Segment], slice]:
        """Draw a task and builds a sample's segments.

        Args:
            sample: Decoded.
            rng: Draws the task and what the task leaves open.

        Returns:
            The segments, and the sample's clips that they are about: all, or the one that a text-to-clip task drew.

        Raises:
            SampleError: If its texts allow none of the tasks: "missing_caption", "missing_question" or
                "missing_story", by the first task of the mixture. "too_large" if they are longer than any sequence.
        """
        names = list(self.weights)
        # The whole order is drawn, so that a task that is impossible gives way to the others by their weights.
        keys = rng.exponential(size=len(names)) / np.array([self.weights[name] for name in names])
        missing: dict[str, MissingText] = {}
        for name in (names[place] for place in np.argsort(keys)):
            try:
                segments = TASKS[name](
                    sample.text, rng, template=self.template, num_clips=sample.num_clips, kind=sample.kind
                )
            except MissingText as error:
                missing[name] = error
                continue
            _refuse_long(segments)
            if name not in ONE_CLIP_TASKS or sample.num_clips == 1:
                return segments, slice(None)
            clip = int(rng.integers(sample.num_clips))
            return segments, slice(clip, clip + 1)
        details = "; ".join(f"{name}: {missing[name].detail}" for name in names)
        raise SampleError(missing[names[0]].reason, details)


def _refuse_long(segments: list[Segment]) -> None:
    length = sum(len(segment.text) for segment in segments if isinstance(segment, Text))
    if length > MAX_TEXT_CHARACTERS:
        raise SampleError("too_large", f"a text of {length} characters; at most {MAX_TEXT_CHARACTERS} are read")


Item = dict[str, Any]


def tokenizer_items(sample: Sample, rng: np.random.Generator | None = None) -> list[Item]:
    """Turn a sample into the item of the (de-)tokenizer stages: one of its clips, so that batches stay as planned.

    Args:
        sample: With video.
        rng: Draws the clip of a sample that has several; without it the first.
    """
    if sample.video is None:
        raise UserError(
            f"sample {sample.key!r} holds cached features, but this stage trains on pixels; "
            "give it the shards that the features were made from."
        )
    if sample.num_clips == 1:
        return [{"key": sample.key, "video": sample.video[0]}]
    clip = 0 if rng is None else int(rng.integers(sample.num_clips))
    return [{"key": f"{sample.key}.clip{clip}", "video": sample.video[clip]}]


def llm_items(sample: Sample, rng: np.random.Generator, mixture: TaskMixture) -> list[Item]:
    """Turn a sample into the item of the LLM stages: segments, and the clips that they are about.

    Args:
        sample: With video or features.
        rng: Draws the task, its wording, and the clip of a text-to-clip task.
        mixture: The tasks.
    """
    segments, clips = mixture.draw(sample, rng)
    media = {"video": sample.video, "features": sample.features}
    used = {name: value[clips] for name, value in media.items() if value is not None}
    return [{"key": sample.key, "segments": segments, **used}]


def check_item(item: Item, limits: SampleLimits) -> None:
    """Refuse what the stage cannot take.

    Args:
        item: Of `llm_items` or `tokenizer_items`.
        limits: The stage's.

    Raises:
        SampleError: "feature_shape": cached features are not of the tokenizer's shape. "too_long": without any of its
            text the sample is still longer than the longest sequence.
    """
    features, wanted = item.get("features"), limits.feature_shape
    if features is not None and wanted is not None and tuple(features.shape[1:]) != wanted:
        found = tuple(features.shape[1:])
        raise SampleError("feature_shape", f"{found[0]} tokens of width {found[1]}, not {wanted[0]} of {wanted[1]}")
    excess = limits.excess(item.get("segments", []))
    if excess:
        longest = limits.layout.max_length if limits.layout else None
        raise SampleError("too_long", f"without any text {excess} tokens more than max_length, which is {longest}")


def collate(items: list[Item]) -> dict[str, Any]:
    """Make a batch.

    Returns:
        "key" (B strings) and "video" (uint8, (B, F, 3, H, W)) for the (de-)tokenizer stages; for the LLM stages
        "segments" (B lists) as well and "video" (M, F, 3, H, W) or "features" (float32, (M, Q, C)) of all M clips in
        order of appearance.

    Raises:
        UserError: Items are of different kinds or shapes, which only a stage's `SampleLimits` can tell apart before.
    """
    batch: dict[str, Any] = {"key": [item["key"] for item in items]}
    if "segments" not in items[0]:
        return {**batch, "video": torch.stack([item["video"] for item in items])}
    batch["segments"] = [item["segments"] for item in items]
    media = [name for name in ("video", "features") if name in items[0]]
    if any(set(item) != set(items[0]) for item in items):
        raise UserError("a batch would mix videos and cached features; take one kind of shards for a stage.")
    shapes = {tuple(item[name].shape[1:]): item["key"] for name in media for item in items}
    if len(shapes) > 1:
        (one, key), (other, other_key) = list(shapes.items())[:2]
        raise UserError(
            f"a batch would mix clips of the shapes {one} (sample {key!r}) and {other} ({other_key!r}); which of them "
            "the stage takes is not known to the data.\nUse shards of one tokenizer; `divot data inspect` finds others."
        )
    return {**batch, **{name: torch.cat([item[name] for item in items]) for name in media}}
