"""Videos to shards of features: a frozen tokenizer runs once instead of in every step of the LLM stages.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor
from tqdm import tqdm

from divot_datamodules.decoding.cached_features import TOKENIZER_FIELD
from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.sample_errors import SampleError
from divot_datamodules.decoding.samples import MAX_SAMPLE_CLIPS, Sample, SampleDecoder
from divot_datamodules.loading.skipped_samples import Budget, SkippedSample, SkippedSamples
from divot_datamodules.preparation.feature_checks import clip_identity
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.reading import FEATURE_SUFFIX
from divot_datamodules.shards.sources import SampleSource, open_source
from divot_datamodules.shards.writing import Sample as Members
from divot_datamodules.shards.writing import ShardFolder
from divot_lightning.checkpoint.components import find_component, load_component, read_settings, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.inference.run_settings import run_clip_settings
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.tokenizer.video_tokenizer import TokenizerConfig, VideoTokenizer

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
"""As Lightning names what a stage trains with."""


@dataclass(frozen=True)
class EncodeConfig:
    """How videos become features.

    Attributes:
        clip: How clips are cut; only the frames that the tokenizer reads are decoded. None cuts them as the tokenizer's
            run does; where it does not say, in the size that the tokenizer's ViT reads.
        max_clips: 1: a video gives the clip in its middle. More: it gives the clips that stand for all of it, as in
            training; see `divot_datamodules.decoding.clip_sampling.clip_times`.
        precision: Of the tokenizer; that of the training, if features are to be bit for bit those of encoding there.
        samples_per_shard: At most; a shard of videos that holds more becomes several.
        max_sample_clips: Most videos of a sample that has several; one with more is left out.
    """

    clip: ClipConfig | None = None
    max_clips: int = 1
    precision: Precision = "32-true"
    samples_per_shard: int = 1024
    max_sample_clips: int = MAX_SAMPLE_CLIPS

    def __post_init__(self) -> None:
        for name in ("max_clips", "samples_per_shard", "max_sample_clips"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.precision not in ("32-true", "bf16-mixed", "bf16-true"):
            raise UserError(f"precision is {self.precision!r}; choose '32-true', 'bf16-mixed' or 'bf16-true'.")


@dataclass(frozen=True)
class EncodeReport:
    """What was encoded.

    Attributes:
        samples: Samples in the feature shards.
        shards: Feature shards.
        skipped: Samples that were left out.
        already_there: Whether the output folder held exactly this before.
    """

    samples: int
    shards: int
    skipped: list[SkippedSample]
    already_there: bool = False


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer and what its features are called."""

    tokenizer: VideoTokenizer
    sha256: str
    precision: Precision

    @classmethod
    def load(cls, component: Path, sha256: str, device: str, precision: Precision) -> "_Encoder":
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        return cls(load_component(component, VideoTokenizer).to(device, dtype).eval(), sha256, precision)

    def members(self, samples: list[Sample]) -> Iterator[Members]:
        """Yield each sample with its features in place of its videos."""
        videos = [sample.video for sample in samples if sample.video is not None]
        device = next(self.tokenizer.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            tokens_NQC = encode_clips(self.tokenizer, torch.cat(videos)).cpu()
        for sample, tokens in zip(samples, tokens_NQC.split([len(video) for video in videos]), strict=True):
            yield self._member(sample, tokens)

    def _member(self, sample: Sample, tokens_NQC: Tensor) -> Members:
        text = {**sample.text, "kind": "image"} if sample.kind == "image" else sample.text
        tokens = tokens_NQC[0] if len(tokens_NQC) == 1 else tokens_NQC
        data = save_safetensors({"tokens": tokens.contiguous()}, {TOKENIZER_FIELD: self.sha256})
        return sample.key, {FEATURE_SUFFIX: data, "json": json.dumps(text).encode()}


def _decoded(
    source: SampleSource, unit: int, places: range, decoder: SampleDecoder, ledger: SkippedSamples
) -> Iterator[Sample]:
    for place in places:
        ledger.count_seen()
        try:
            sample = decoder(source.read(unit, place), None)
            if sample.video is None:
                raise UserError(f"{source.shard_path(unit)} holds features already; encode the shards of videos.")
            yield sample
        except SampleError as error:
            defect = SkippedSample(error.reason, source.shard_path(unit), source.key(unit, place), error.detail)
            ledger.add(defect)


def _pieces(source: SampleSource, samples_per_shard: int) -> list[tuple[int, range]]:
    """Return unit and places of each feature shard."""
    return [
        (unit, range(start, min(start + samples_per_shard, count)))
        for unit, count in enumerate(source.counts)
        for start in range(0, count, samples_per_shard)
    ]


def _identity(sha256: str, source: SampleSource, clip: ClipConfig, settings: EncodeConfig) -> dict[str, Any]:
    """Return everything that decides the features; names alone would not notice that shards were made anew."""
    named = {name: value for name, value in asdict(settings).items() if name not in ("clip", "max_sample_clips")}
    return {"tokenizer_sha256": sha256, "source": source.fingerprint, "clip": clip_identity(clip), **named}


def encode_shards(
    tokenizer: str | Path,
    source: str | Path,
    output: str | Path,
    settings: EncodeConfig | None = None,
    *,
    media_root: str | Path | None = None,
    media_from: MediaFrom = "disk",
    batch_size: int = 32,
    budget: Budget | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> EncodeReport:
    """Run a trained tokenizer over videos and writes feature shards; continues where an interrupted call stopped.

    Clips are always the same: a stage that trains on the videos themselves draws where a single clip starts.

    Args:
        tokenizer: Run or component folder.
        source: Shards or a jsonl of videos; see `divot_datamodules.shards.sources.open_source`.
        output: Folder of the feature shards.
        settings: What decides the features.
        media_root: Of a jsonl: folder that relative paths start from.
        media_from: Of a jsonl: see `divot_datamodules.shards.sources.open_source`.
        batch_size: Samples at a time; decides no feature.
        budget: How much may be lost.
        device: Where the tokenizer runs.
        progress: Whether to show a bar with rate and time left.
    """
    settings, output = settings or EncodeConfig(), Path(output)
    component = find_component(tokenizer, "tokenizer")
    clip = settings.clip or tokenizer_clip(tokenizer)
    opened = open_source(
        source,
        media_root=media_root,
        media_from=media_from,
        index_folder=output / "source_index",
        progress=progress,
    )
    sha256 = weights_sha256(component)
    folder = ShardFolder(
        output,
        kind="features",
        settings=_identity(sha256, opened, clip, settings),
        newer_settings={"source_content": opened.content, "max_sample_clips": settings.max_sample_clips},
    )
    ledger = SkippedSamples("encode", output, budget, total=sum(opened.counts))
    pieces = _pieces(opened, settings.samples_per_shard)
    if folder.complete:
        return EncodeReport(folder.facts()["num_samples"], len(pieces), ledger.all(), already_there=True)
    for defect in opened.skipped:
        ledger.add(defect)
    encoder = _Encoder.load(component, sha256, device, settings.precision)
    frames = encoder.tokenizer.config.num_frames
    clip = replace(clip, sparse_frames=frames)
    decoder = SampleDecoder(clip, settings.max_clips, max_sample_clips=settings.max_sample_clips)
    with tqdm(total=sum(opened.counts), desc="features", unit="sample", disable=not progress) as bar:
        for number, (unit, places) in enumerate(pieces):
            if not folder.has(number):
                samples = _decoded(opened, unit, places, decoder, ledger)
                folder.write(number, _encoded(samples, encoder, batch_size, bar))
            bar.update(places.stop + sum(opened.counts[:unit]) - bar.n)
    written = sum(entry.samples for entry in folder.entries())
    ledger.check_pass(len(ledger.all()), written + len(ledger.all()))
    folder.finish()
    return EncodeReport(written, len(pieces), ledger.all())


def tokenizer_clip(tokenizer: str | Path) -> ClipConfig:
    """Return how a tokenizer's run cuts clips; videos that are too short are left out as elsewhere by default."""
    component = read_settings(find_component(tokenizer, "tokenizer"), VideoTokenizer, TokenizerConfig)
    stated = run_clip_settings(tokenizer, component)
    return replace(stated, short_videos="refuse", sparse_frames=None)


def _encoded(samples: Iterator[Sample], encoder: _Encoder, batch_size: int, bar: "tqdm[None]") -> Iterator[Members]:
    while batch := list(islice(samples, batch_size)):
        yield from encoder.members(batch)
        bar.update(len(batch))
