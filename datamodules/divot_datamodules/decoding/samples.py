"""From raw samples to decoded ones, and from decoded ones to items and batches.

Shape letters: B batch, M clips of a batch, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.cached_features import read_features, read_latents
from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clips, image_picture
from divot_datamodules.decoding.sample_errors import decoding_errors
from divot_datamodules.decoding.video import IMAGE_SUFFIXES
from divot_datamodules.shards.reading import FEATURE_SUFFIX, MEDIA_SUFFIXES
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.segments import Kind
from divot_lightning.parts.sequences.limits import SampleLimits
from divot_lightning.parts.sequences.tokens import TokenSequence
from divot_lightning.parts.sources import RawSample, SampleError

Members = Mapping[str, bytes | Path]

MAX_SAMPLE_CLIPS = 64
"""Most clips of one sample: more than twice the number in the paper's longest sequences (1650 tokens, 66 for a clip; at
most 20 clips of a video, 3 of a story). Decoded at 256 x 256 with 16 frames each, 64 clips are 201 MB."""


@dataclass
class Sample:
    """A decoded sample.

    Attributes:
        key: Key of the sample.
        text: Its json, or {"caption": ...} from a txt; {} if it has no text.
        kind: Whether its media are videos or images.
        video: uint8 (N, F, 3, H, W), its N clips; None if the sample has features.
        features: float32 (N, Q, C); None if the sample has video.
        latents: float32 (N, ...), what the de-tokenizer's latents of the clips are sampled from; None if they are not
            cached, or the stage does not use them.
        is_deterministic: Whether decoding again would give the same sample.
        sequences: Token sequence of each item that the sample becomes, laid out by the worker that decoded it; None
            if it did not.
    """

    key: str
    text: dict[str, Any]
    kind: Kind = "video"
    video: Tensor | None = None
    features: Tensor | None = None
    latents: Tensor | None = None
    is_deterministic: bool = True
    sequences: list[TokenSequence] | None = None

    @property
    def num_clips(self) -> int:
        """Number of clips."""
        media = self.video if self.video is not None else self.features
        return 0 if media is None else len(media)


def _content(member: bytes | Path) -> bytes:
    """Return a member's bytes; members of jsonl samples are paths."""
    if isinstance(member, bytes):
        return member
    try:
        return member.read_bytes()
    except OSError as error:
        raise SampleError("missing_media", f"{member} cannot be read: {error.strerror}") from error


def read_text(members: Members) -> dict[str, Any]:
    """Read a sample's json, or its txt as a caption; return {} if it has neither.

    A byte order mark at the beginning, as Windows programs write it, is ignored.

    Raises:
        SampleError: "bad_json"; "not_utf8", also for an escape sequence that is half of a character.
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
        # A pair of escapes such as \ud83d\ude00 is one character; one alone, from an emoji that was cut, is none.
        json.dumps(text, ensure_ascii=False).encode("utf-8")
    return text


def media_names(members: Iterable[str]) -> list[str]:
    """Return which of a sample's members are its media: its numbered clips in order, or its only file.

    >>> media_names(["json", "clip10.mp4", "clip9.mp4"]), media_names(["json", "mp4"])
    (['clip9.mp4', 'clip10.mp4'], ['mp4'])
    """
    names = set(members)
    numbered = sorted((s for s in names if s.startswith("clip")), key=lambda s: int(s.split(".")[0][4:]))
    return numbered or [suffix for suffix in MEDIA_SUFFIXES if suffix in names][:1]


def media_members(members: Members) -> list[tuple[str, bytes | Path]]:
    """Return a sample's media with their suffixes."""
    return [(name.split(".")[-1], members[name]) for name in media_names(members)]


@dataclass
class SampleDecoder:
    """Decodes samples.

    Attributes:
        clip: Settings of the clips.
        max_clips: 1: one clip of a video, with a random start. More: clips that cover the whole video, see
            `divot_datamodules.decoding.clip_sampling.clip_times`. Each numbered video of a story gives one clip.
        tokenizer_sha256: Refuse cached features whose metadata names another tokenizer; None for no check.
        latents_sha256: What cached latents must come from, for a stage that uses them; None does not read them.
        max_sample_clips: Most clips of one sample: videos of a story, or clips in a file of cached features. A larger
            `max_clips` raises this limit.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    max_clips: int = 1
    tokenizer_sha256: str | None = None
    max_sample_clips: int = MAX_SAMPLE_CLIPS
    latents_sha256: str | None = None

    def __post_init__(self) -> None:
        require_at_least(1, max_clips=self.max_clips, max_sample_clips=self.max_sample_clips)

    def __call__(self, raw: RawSample, rng: np.random.Generator | None) -> Sample:
        """Decode one sample.

        Args:
            raw: The sample from the shard.
            rng: Samples the start of clips; without it they are in the middle.

        Raises:
            SampleError: The sample cannot be used.
        """
        text = read_text(raw.members)
        if FEATURE_SUFFIX in raw.members:
            kind: Kind = "image" if text.get("kind") == "image" else "video"
            content = _content(raw.members[FEATURE_SUFFIX])
            features = read_features(content, self.tokenizer_sha256)
            self._refuse_many(len(features))
            latents = read_latents(content, self.latents_sha256)
            if latents is not None and len(latents) != len(features):
                raise SampleError("bad_features", f"latents of {len(latents)} clips, features of {len(features)}")
            return Sample(raw.key, text, kind, features=features, latents=latents)
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
        """Return the clips of one file, uint8 (N, F, 3, H, W), and whether they are deterministic."""
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


Item = dict[str, Any]


def tokenizer_items(sample: Sample, rng: np.random.Generator | None = None) -> list[Item]:
    """Turn a sample into the item of the (de-)tokenizer stages: one clip, so that batches have the planned size.

    Args:
        sample: A sample with video.
        rng: Samples one of several clips; without it the first one is used.

    Raises:
        UserError: The sample has cached features, but no latents that the stage can use.
    """
    if sample.video is None and sample.latents is None:
        raise UserError(
            f"sample {sample.key!r} holds cached features, but this stage trains on pixels, or on latents beside the "
            "features\ngive it the shards that the features were made from; for the refinement of a de-tokenizer, run "
            "`divot data encode` with --detokenizer"
        )
    clip = 0 if rng is None or sample.num_clips == 1 else int(rng.integers(sample.num_clips))
    key = sample.key if sample.num_clips == 1 else f"{sample.key}.clip{clip}"
    if sample.video is not None:
        return [{"key": key, "video": sample.video[clip]}]
    assert sample.features is not None
    assert sample.latents is not None
    return [{"key": key, "tokens": sample.features[clip], "latents": sample.latents[clip]}]


def check_item(item: Item, limits: SampleLimits) -> None:
    """Refuse an item that the stage cannot use.

    Args:
        item: From `divot_datamodules.tasks.mixture.llm_items` or `tokenizer_items`.
        limits: Limits of the stage.

    Raises:
        SampleError: "feature_shape": the cached features do not have the tokenizer's shape. "too_long": even without
            any text the sample is longer than the longest sequence.
    """
    features, expected = item.get("features"), limits.feature_shape
    if features is not None and expected is not None and tuple(features.shape[1:]) != expected:
        found = tuple(features.shape[1:])
        raise SampleError("feature_shape", f"{found[0]} tokens of width {found[1]}, not {expected[0]} of {expected[1]}")
    excess = limits.excess(item.get("segments", []))
    if excess:
        longest = limits.layout.max_length if limits.layout else None
        raise SampleError("too_long", f"without any text {excess} tokens more than max_length, which is {longest}")
