"""Inspection before training: what shards and jsonl files contain, and which samples would be skipped, and why."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from divot_datamodules.decoding.sample_errors import decoding_errors
from divot_datamodules.decoding.samples import Item, Sample, SampleDecoder, check_item
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, MediaInfo, probe
from divot_datamodules.loading.decode_pool import Pending, make_decoding
from divot_datamodules.loading.decode_worker import Decode, Request
from divot_datamodules.order.source_order import SampleIndex
from divot_datamodules.preparation.inspection_report import SHEET_FRAMES, SHEET_SAMPLES, ShardReport
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.reading import MEDIA_SUFFIXES, expand_shards
from divot_datamodules.shards.sources import find_jsonl, open_source
from divot_datamodules.tasks.mixture import TaskMixture, llm_items
from divot_lightning.checkpoint.components import read_settings
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.sequences.layout import SequenceLayout
from divot_lightning.parts.sequences.limits import SampleLimits
from divot_lightning.parts.sources import RawSample, SampleError, SkippedSample, Source


def find_shards(source: str) -> list[str]:
    """List shards as a recipe would, or those of all subfolders if the folder itself contains none."""
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.tar")):
        found = sorted(str(path) for path in folder.rglob("*.tar"))
        if found:
            return found
    return expand_shards(source)


def open_for_inspection(
    source: str, *, media_root: str | None = None, media_from: MediaFrom = "disk", copies_gb: float = 20.0
) -> Source:
    """Open shards, those of subfolders included, or jsonl files; unreadable ones are accepted, for the report.

    Args:
        source: See `divot_datamodules.shards.sources.open_source`.
        media_root: See `divot_datamodules.shards.sources.open_source`.
        media_from: See `divot_datamodules.shards.sources.open_source`.
        copies_gb: See `divot_datamodules.shards.sources.open_source`.
    """
    jsonl = find_jsonl(source)
    return open_source(
        source if jsonl else find_shards(source),
        media_root=media_root if jsonl else None,
        media_from=media_from,
        copies_gb=copies_gb,
        may_be_empty=True,
    )


def limits_for(tokenizer: str | Path, max_length: int | None = None) -> SampleLimits:
    """Return the limits that a video LLM on a tokenizer's features has for samples.

    Args:
        tokenizer: Run or component folder.
        max_length: Longest sequence in tokens. A token at the beginning is counted, which most language models have;
            generated clips have the length of learnable queries.
    """
    config = read_settings(find_component(tokenizer, "tokenizer"), VideoTokenizer, TokenizerConfig)
    layout = SequenceLayout(config.tokens_per_clip, max_length=max_length)
    return SampleLimits((config.tokens_per_clip, config.token_dim), layout, begins=True)


PICTURED = "with picture"
"""Name of the split in requests that need a picture for the contact sheet."""


@dataclass
class _Look:
    """What inspection found in one sample."""

    suffixes: list[str] = field(default_factory=list)
    videos: list[MediaInfo] = field(default_factory=list)
    text: dict[str, Any] = field(default_factory=dict)
    features: tuple[int, ...] | None = None
    picture: Tensor | None = None
    error: SampleError | None = None


@dataclass
class _Inspector:
    """Reads and decodes a sample as training would, and returns what it found."""

    source: Source
    decoder: SampleDecoder
    tasks: TaskMixture | None
    limits: SampleLimits

    def __call__(self, request: Request) -> _Look:
        look = _Look()
        try:
            raw = self.source.read(request.sample.shard, request.sample.sample)
            look.suffixes = list(raw.members)
            sample = self.decoder(raw, None)
            for item in self._items(sample):
                check_item(item, self.limits)
            look.features = tuple(sample.features.shape[1:]) if sample.features is not None else None
            with decoding_errors():
                look.videos = [probe(media, max_pixels=self.decoder.clip.max_pixels) for media in _videos(raw)]
            look.text, look.picture = sample.text, _picture(sample) if request.data == PICTURED else None
        except SampleError as error:
            look.error = SampleError(error.reason, error.detail)  # without the traceback, to cross processes
        return look

    def _items(self, sample: Sample) -> list[Item]:
        """Return the items of a stage, for each task alone, so that no task hides what is wrong with another."""
        if self.tasks is None:
            return [{} if sample.features is None else {"features": sample.features}]
        rng = np.random.default_rng(0)
        first = llm_items(sample, rng, self.tasks)  # raises an error if the texts allow no task at all
        return [*first, *(item for one in self.tasks.each() for item in _allowed(sample, rng, one))]


def _allowed(sample: Sample, rng: np.random.Generator, task: TaskMixture) -> list[Item]:
    try:
        return llm_items(sample, rng, task)
    except SampleError as error:
        if error.reason.startswith("missing_"):
            return []
        raise


def _videos(raw: RawSample) -> list[bytes | Path]:
    endings = {suffix: suffix.split(".")[-1] for suffix in raw.members}
    return [raw.members[s] for s, end in endings.items() if end in MEDIA_SUFFIXES and end not in IMAGE_SUFFIXES]


def _picture(sample: Sample) -> Tensor | None:
    if sample.video is None:
        return None
    video = sample.video[0]
    chosen = np.linspace(0, len(video) - 1, SHEET_FRAMES).round().astype(int)
    return video[chosen].clone()


def inspect_source(
    source: Source,
    decoder: SampleDecoder | None = None,
    *,
    tasks: TaskMixture | None = None,
    limits: SampleLimits | None = None,
    workers: int = 0,
    deadline: float = 30.0,
    on_sample: Callable[[], object] | None = None,
) -> ShardReport:
    """Read and decode each sample as training would, and count.

    Args:
        source: The samples.
        decoder: Decoder as in training.
        tasks: Tasks as in training; a sample whose texts allow no task is reported. None for no such check.
        limits: Limits of the stage. Without them, cached features must have the shape of the first ones.
        workers: Worker processes; 0 decodes in this process, where deadlines have no effect.
        deadline: Seconds for one sample; a sample that takes longer is reported, and its worker replaced.
        on_sample: Called after each sample, for a progress bar.

    Raises:
        UserError: A number is out of range.
    """
    require_at_least(0, workers=workers)
    if not deadline > 0:
        raise UserError(f"deadline is {deadline}; it must be above 0 seconds")
    report = ShardReport(shards=len(source.counts), skipped=list(source.skipped))
    report.samples = sum(source.counts) + sum(bool(sample.key) for sample in source.skipped)
    names = [source.shard_path(shard) for shard in range(len(source.counts))]
    report.bytes = source.num_bytes or 0
    inspector = _Inspector(source, decoder or SampleDecoder(), tasks, limits or SampleLimits())
    for shard, number, look in _looks(inspector, report, workers, deadline):
        _count(look, names[shard], source.key(shard, number), report)
        if on_sample is not None:
            on_sample()
    return report


def _count(look: _Look, shard: str, key: str, report: ShardReport) -> None:
    report.suffixes.update(look.suffixes)
    for info in look.videos:
        report.durations.append(info.duration)
        report.resolutions[f"{info.height}x{info.width}"] += 1
        report.rates[f"{info.fps:.4g}"] += 1
    caption, questions = look.text.get("caption"), look.text.get("questions")
    report.captions += bool(caption)
    report.questions += len(questions) if isinstance(questions, list) else "question" in look.text
    if look.picture is not None and len(report.pictures) < SHEET_SAMPLES:
        report.pictures.append((look.picture, str(caption or key)))
    if look.features is not None:
        report.features["x".join(map(str, look.features))] += 1
        look.error = look.error or _unlike_first(look.features, report)
    if look.error is not None:
        report.skipped.append(SkippedSample(look.error.reason, shard, key, look.error.detail))


def _unlike_first(shape: tuple[int, ...], report: ShardReport) -> SampleError | None:
    """Return an error if the features have another shape than the first ones: they cannot share a batch."""
    first, found = next(iter(report.features)), "x".join(map(str, shape))
    return None if found == first else SampleError("feature_shape", f"{found}; the first features are {first}")


def _looks(
    inspector: _Inspector, report: ShardReport, workers: int, deadline: float
) -> Iterator[tuple[int, int, _Look]]:
    """Yield shard, sample and what was found, in order; at most a few samples per worker are in flight."""
    samples = ((shard, sample) for shard, count in enumerate(inspector.source.counts) for sample in range(count))
    requests = (
        Request(PICTURED if len(report.pictures) < SHEET_SAMPLES else "", SampleIndex(number, 0, 0, *sample))
        for number, sample in enumerate(samples)
    )
    # The workers return looks instead of samples. They have no shared memory, so the few pictures are pickled.
    decoding = make_decoding(cast(Decode, inspector), num_workers=workers, deadline=deadline, num_slots=0, slot_bytes=1)
    waiting: deque[Pending] = deque()
    try:
        while True:
            waiting.extend(map(decoding.submit, islice(requests, max(1, 4 * workers) - len(waiting))))
            if not waiting:
                return
            pending = waiting.popleft()
            yield pending.request.sample.shard, pending.request.sample.sample, _result(pending)
            pending.release()
    finally:
        decoding.close()


def _result(pending: Pending) -> _Look:
    try:
        return cast(_Look, pending.result())
    except SampleError as error:
        return _Look(error=error)
