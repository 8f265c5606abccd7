"""Encode videos into shards of features, so that the LLM stages need not run the frozen tokenizer in every step.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor
from tqdm import tqdm

from divot_datamodules.decoding.cached_features import LATENTS_FIELD, TOKENIZER_FIELD
from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import MAX_SAMPLE_CLIPS, Sample, SampleDecoder
from divot_datamodules.loading.skipped_samples import Budget, SkippedSamples
from divot_datamodules.preparation.feature_checks import clip_identity
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.reading import FEATURE_SUFFIX
from divot_datamodules.shards.sources import open_source
from divot_datamodules.shards.writing import Sample as Members
from divot_datamodules.shards.writing import ShardFolder
from divot_lightning.checkpoint.components import load_component, part_sha256, read_settings
from divot_lightning.checkpoint.run_components import find_component, weights_sha256
from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.inference.loaded_run import usable_device
from divot_lightning.inference.run_config import run_clip_config, run_short_videos
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.latents import Latents
from divot_lightning.parts.sources import SampleError, SkippedSample, Source

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
"""Precision, by the names that Lightning has for it."""


@dataclass(frozen=True)
class EncodeConfig:
    """How videos become features.

    Attributes:
        clip: How clips are cut; only the frames that the tokenizer reads are decoded. None cuts them as the tokenizer's
            run does; where it does not say, in the size that the tokenizer's ViT reads.
        max_clips: 1: a video gives the clip in its middle. More: it gives clips that cover all of it, as in
            training; see `divot_datamodules.decoding.clip_sampling.clip_times`.
        precision: Of the tokenizer. With the precision of the training, features equal those of the training bit for
            bit.
        samples_per_shard: Most samples of a feature shard; a larger shard of videos becomes several feature shards.
        max_sample_clips: Most videos of one sample; a sample with more is skipped.
    """

    clip: ClipConfig | None = None
    max_clips: int = 1
    precision: Precision = "32-true"
    samples_per_shard: int = 1024
    max_sample_clips: int = MAX_SAMPLE_CLIPS

    def __post_init__(self) -> None:
        for name in ("max_clips", "samples_per_shard", "max_sample_clips"):
            require_at_least(1, **{name: getattr(self, name)})
        require_one_of(get_args(Precision), precision=self.precision)


@dataclass(frozen=True)
class EncodeReport:
    """The result of `encode_shards`.

    Attributes:
        samples: Samples in the feature shards.
        shards: Feature shards.
        skipped: Samples that were skipped, with reasons.
        already_there: Whether the output folder was complete before the call.
    """

    samples: int
    shards: int
    skipped: list[SkippedSample]
    already_there: bool = False


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer, and the latents of a de-tokenizer if they are cached too, with the hashes that each file records."""

    tokenizer: VideoTokenizer
    latents: Latents | None
    metadata: Mapping[str, str]
    precision: Precision

    @classmethod
    def load(
        cls, component: Path, detokenizer: Path | None, metadata: Mapping[str, str], device: str, precision: Precision
    ) -> "_Encoder":
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        latents = load_component(detokenizer, VideoDetokenizer).latents.to(device).eval() if detokenizer else None
        return cls(load_component(component, VideoTokenizer).to(device, dtype).eval(), latents, metadata, precision)

    def members(self, samples: list[Sample]) -> Iterator[Members]:
        """Yield each sample with its features in place of its videos."""
        videos = [sample.video for sample in samples if sample.video is not None]
        clips, counts = torch.cat(videos), [len(video) for video in videos]
        device = next(self.tokenizer.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            tensors = {"tokens": encode_clips(self.tokenizer, clips).cpu()}
            if self.latents is not None:
                parts = [self.latents.posterior(to_unit_range(clip[None].to(device))).cpu() for clip in clips]
                tensors["latents"] = torch.cat(parts)
        split = {name: tensor.split(counts) for name, tensor in tensors.items()}
        for index, sample in enumerate(samples):
            yield self._member(sample, {name: parts[index] for name, parts in split.items()})

    def _member(self, sample: Sample, tensors: dict[str, Tensor]) -> Members:
        text = {**sample.text, "kind": "image"} if sample.kind == "image" else sample.text
        tokens_NQC = tensors["tokens"]
        stored = {**tensors, "tokens": tokens_NQC[0] if len(tokens_NQC) == 1 else tokens_NQC}
        data = save_safetensors({name: tensor.contiguous() for name, tensor in stored.items()}, dict(self.metadata))
        return sample.key, {FEATURE_SUFFIX: data, "json": json.dumps(text).encode()}


def _decoded(
    source: Source, shard: int, indices: range, decoder: SampleDecoder, skipped: SkippedSamples
) -> Iterator[Sample]:
    """Decode samples of a shard; record and skip those that cannot be decoded."""
    for index in indices:
        skipped.count_seen()
        try:
            sample = decoder(source.read(shard, index), None)
            if sample.video is None:
                raise UserError(f"{source.shard_path(shard)} holds features already; encode the shards of videos.")
            yield sample
        except SampleError as error:
            skipped.add(SkippedSample(error.reason, source.shard_path(shard), source.key(shard, index), error.detail))


def _plan_feature_shards(source: Source, samples_per_shard: int) -> list[tuple[int, range]]:
    """Return for each feature shard the shard of videos and the sample indices within it."""
    return [
        (shard, range(start, min(start + samples_per_shard, count)))
        for shard, count in enumerate(source.counts)
        for start in range(0, count, samples_per_shard)
    ]


def _feature_folder(
    output: Path, metadata: Mapping[str, str], source: Source, clip: ClipConfig, config: EncodeConfig
) -> ShardFolder:
    """Open the folder of the feature shards, which records everything that decides the features.

    File names alone would miss shards whose content was replaced.
    """
    named = {name: value for name, value in asdict(config).items() if name not in ("clip", "max_sample_clips")}
    return ShardFolder(
        output,
        kind="features",
        settings={**metadata, "source": source.fingerprint, "clip": clip_identity(clip), **named},
        newer_settings={"source_content": source.content, "max_sample_clips": config.max_sample_clips},
    )


def encode_shards(
    tokenizer: str | Path,
    source: str | Path,
    output: str | Path,
    config: EncodeConfig | None = None,
    *,
    detokenizer: str | Path | None = None,
    media_root: str | Path | None = None,
    media_from: MediaFrom = "disk",
    batch_size: int = 32,
    budget: Budget | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> EncodeReport:
    """Encode videos with a trained tokenizer into feature shards; resume where an interrupted call stopped.

    A video always gives the same clips here. A stage that trains on the videos themselves samples the start of a single
    clip at random.

    Args:
        tokenizer: Run or component folder.
        source: Shards or a jsonl of videos; see `divot_datamodules.shards.sources.open_source`.
        output: Folder of the feature shards.
        config: What decides the features.
        detokenizer: Run or component folder of a de-tokenizer, to cache what its latents are sampled from as well, so
            that its refinement and adaptation need no pixels; all frames of the clips are decoded then.
        media_root: Of a jsonl: folder that relative paths start from.
        media_from: Of a jsonl: see `divot_datamodules.shards.sources.open_source`.
        batch_size: Samples at a time; does not change the features.
        budget: How many samples may be skipped.
        device: Where the tokenizer runs.
        progress: Whether to show a bar with rate and time left.

    Returns:
        Number of samples and shards, and the samples that were skipped.
    """
    require_at_least(1, batch_size=batch_size)
    usable_device(device)
    config, output = config or EncodeConfig(), Path(output)
    component = find_component(tokenizer, "tokenizer")
    clip = config.clip or tokenizer_clip(tokenizer)
    opened = open_source(
        source,
        media_root=media_root,
        media_from=media_from,
        index_folder=output / "source_index",
        progress=progress,
    )
    latents = None if detokenizer is None else find_component(detokenizer, "detokenizer")
    metadata = _metadata(component, latents, clip)
    folder = _feature_folder(output, metadata, opened, clip, config)
    skipped = SkippedSamples("encode", output, budget, total=sum(opened.counts))
    planned = _plan_feature_shards(opened, config.samples_per_shard)
    if folder.complete:
        return EncodeReport(folder.facts()["num_samples"], len(planned), skipped.all(), already_there=True)
    for sample in opened.skipped:
        skipped.add(sample)
    encoder = _Encoder.load(component, latents, metadata, device, config.precision)
    decoder = _decoder(encoder, clip, config)
    with tqdm(total=sum(opened.counts), desc="features", unit="sample", disable=not progress) as bar:
        for number, (shard, indices) in enumerate(planned):
            if not folder.has(number):
                samples = _decoded(opened, shard, indices, decoder, skipped)
                folder.write(number, _encoded(samples, encoder, batch_size, bar))
            bar.update(indices.stop + sum(opened.counts[:shard]) - bar.n)
    written = sum(entry.samples for entry in folder.entries())
    skipped.check_pass(len(skipped.all()), written + len(skipped.all()))
    folder.finish()
    return EncodeReport(written, len(planned), skipped.all())


def _decoder(encoder: _Encoder, clip: ClipConfig, config: EncodeConfig) -> SampleDecoder:
    """Return a decoder of the frames that the tokenizer reads, or of all frames if latents are cached as well."""
    sparse = None if encoder.latents is not None else encoder.tokenizer.config.num_frames
    clip = replace(clip, sparse_frames=sparse)
    return SampleDecoder(clip, config.max_clips, max_sample_clips=config.max_sample_clips)


def _metadata(tokenizer: Path, detokenizer: Path | None, clip: ClipConfig) -> dict[str, str]:
    """Return the hashes that each file records of the components that it comes from."""
    metadata = {TOKENIZER_FIELD: weights_sha256(tokenizer)}
    if detokenizer is not None:
        _check_size(detokenizer, clip)
        metadata[LATENTS_FIELD] = part_sha256(detokenizer, "latents")
    return metadata


def _check_size(detokenizer: Path, clip: ClipConfig) -> None:
    """Refuse clips that a de-tokenizer is not made for."""
    config = read_settings(detokenizer, VideoDetokenizer, DetokenizerConfig)
    needed, given = (config.num_frames, config.size, config.size), (clip.frames, clip.height, clip.width)
    if needed != given:
        raise UserError(
            f"the clips have {given[0]} frames of {given[1]} x {given[2]}, and the de-tokenizer in {detokenizer} takes "
            f"{needed[0]} of {needed[1]} x {needed[2]}\nset --frames and --size to these"
        )


def tokenizer_clip(tokenizer: str | Path) -> ClipConfig:
    """Return how a tokenizer's run cuts clips, and what it does with short videos, so that features fit its recipe."""
    component = read_settings(find_component(tokenizer, "tokenizer"), VideoTokenizer, TokenizerConfig)
    stated = run_clip_config(tokenizer, component)
    return replace(stated, short_videos=run_short_videos(tokenizer), sparse_frames=None)


def _encoded(samples: Iterator[Sample], encoder: _Encoder, batch_size: int, bar: "tqdm[None]") -> Iterator[Members]:
    while batch := list(islice(samples, batch_size)):
        yield from encoder.members(batch)
        bar.update(len(batch))
