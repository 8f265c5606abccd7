"""The toy world as benchmarks: its clips generated, reconstructed, captioned and asked about."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.toy.open_captions import NAMED, check_named, name_some, open_caption
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.captions import CaptionBenchmark
from divot_lightning.evaluation.benchmarks.clips import ClipBenchmark, Reconstruction
from divot_lightning.evaluation.benchmarks.open_ended import OpenBenchmark
from divot_lightning.evaluation.benchmarks.shard_items import ShardSample, shard_items
from divot_lightning.evaluation.metrics.toy_oracle import ToyOracle
from divot_lightning.parts.benchmarks import BenchmarkData, BenchmarkItem
from divot_lightning.parts.metrics import BenchmarkMetric

TOY_SPLITS = ("held_out", "train")
OPEN_CAPTION_SEED = 0
"""Seed that chooses which attributes the caption of a clip names."""


class Toy(ClipBenchmark):
    """Clips of the toy world generated from their captions, read by its exact oracle."""

    splits: ClassVar[tuple[str, ...]] = TOY_SPLITS
    metrics: ClassVar[tuple[str, ...]] = ("toy_oracle", "toy_frechet")
    main_scores: ClassVar[tuple[str, ...]] = ("frechet_video_distance", "all")

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the clips of the shards in `<data>/<split>`, or in the folder itself, with their captions."""
        return read_toy_clips(data, split)


class ToyOpenCaptions(ClipBenchmark):
    """Clips of the toy world generated from captions that name each attribute only sometimes.

    Each clip has one caption, in every run the same. The original of a clip is a real clip that its caption fits.

    Args:
        named: Probability that an attribute is named, 0 to 1.
        clip_model: See `ClipBenchmark`.
        video_features: Likewise.
        video_feature_options: Likewise.
    """

    splits: ClassVar[tuple[str, ...]] = TOY_SPLITS
    metrics: ClassVar[tuple[str, ...]] = ("toy_open_oracle", "toy_frechet")
    main_scores: ClassVar[tuple[str, ...]] = ("named",)

    def __init__(
        self,
        named: float = NAMED,
        clip_model: str | None = None,
        video_features: str | None = None,
        video_feature_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(clip_model, video_features, video_feature_options)
        self.named = check_named(named)

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the clips of the shards in `<data>/<split>`, or in the folder itself, and open their captions."""
        read = read_toy_clips(data, split)
        return replace(read, items=tuple(self._open(*numbered) for numbered in enumerate(read.items)))

    def _open(self, number: int, item: BenchmarkItem) -> BenchmarkItem:
        named = name_some(item.facts["attributes"], self.named, np.random.default_rng([OPEN_CAPTION_SEED, number]))
        return replace(item, facts={**item.facts, "named": named, "prompt": open_caption(named)})


class ToyReconstruction(Reconstruction):
    """Clips of the toy world encoded and decoded again, read by its exact oracle.

    The scores beside PSNR and SSIM are those of `toy`: the best that generation can reach through this de-tokenizer,
    since its tokens are those of real clips.
    """

    splits: ClassVar[tuple[str, ...]] = TOY_SPLITS
    metrics: ClassVar[tuple[str, ...]] = ("psnr", "ssim", "toy_frechet")
    main_scores: ClassVar[tuple[str, ...]] = ("all",)

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the clips of the shards in `<data>/<split>`, or in the folder itself."""
        return read_toy_clips(data, split)

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> list[BenchmarkMetric]:
        """Build the oracle, which also measures the position, and the others."""
        return [ToyOracle(start_error=True), *super().make_metrics(items, device)]


class ToyCaptions(CaptionBenchmark):
    """Captions of the toy world's clips; one that does not parse is wrong in every attribute."""

    splits: ClassVar[tuple[str, ...]] = TOY_SPLITS
    metrics: ClassVar[tuple[str, ...]] = ("captions", "toy_captions")

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the clips of the shards in `<data>/<split>`, or in the folder itself, with their captions."""
        return read_toy_clips(data, split)


class ToyQuestions(OpenBenchmark):
    """Four questions about each clip of the toy world."""

    splits: ClassVar[tuple[str, ...]] = TOY_SPLITS

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read every question of every clip of the shards in `<data>/<split>`, or in the folder itself."""
        return shard_items(_shards(data, split), _question_items)


def read_toy_clips(folder: str | Path, split: str) -> BenchmarkData:
    """Read every clip of the shards in `<folder>/<split>`, or in the folder itself, with its caption and facts."""
    return shard_items(_shards(folder, split), _clip_items)


def _shards(folder: str | Path, split: str) -> list[str]:
    inside = Path(folder) / split
    return expand_shards(str(inside if inside.is_dir() else folder))


def _question_items(sample: ShardSample) -> Iterator[BenchmarkItem]:
    for turn in sample.text.get("questions", []):
        group, name = turn.get("attribute", ""), sample.name
        yield BenchmarkItem(f"{name}/{group}", sample.media, name, turn["question"], answer=turn["answer"], group=group)


def _clip_items(sample: ShardSample) -> Iterator[BenchmarkItem]:
    text = sample.text
    if "attributes" not in text or "start" not in text:
        raise UserError(f"the sample {sample.name!r} is no clip of the toy world; make some: divot data toy")
    facts = {**text, "prompt": text["caption"]}
    yield BenchmarkItem(sample.name, sample.media, sample.name, references=(text["caption"],), facts=facts)
