"""The toy world as benchmarks: its clips generated, reconstructed, captioned and asked about; and bounds for these.

Shape letters: N clips, F frames, H height, W width.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.toy.open_captions import NAMED, check_named, name_some, open_caption
from divot_datamodules.toy.world import ATTRIBUTES, Scene, ToyWorld
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.captions import CaptionBenchmark
from divot_lightning.evaluation.benchmarks.clips import ClipBenchmark, Reconstruction
from divot_lightning.evaluation.benchmarks.open_ended import OpenBenchmark
from divot_lightning.evaluation.benchmarks.shard_items import ShardSample, shard_items
from divot_lightning.evaluation.metrics.toy_oracle import ToyOracle
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData, BenchmarkItem, Predicts
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
        return shard_items(split_shards(data, split), _question_items)


class ToyRealClips(Toy):
    """Other real clips of the same captions, scored as if a model had generated them: the best that can be reached."""

    predicts: ClassVar[Predicts] = "references"

    def __init__(self) -> None:
        super().__init__()

    def reference_clips(self, items: Sequence[BenchmarkItem], originals: Tensor, seed: int) -> Tensor:
        """Render a clip with another start position for each caption, uint8 (N, F, 3, H, W) as the originals."""
        world = ToyWorld(size=originals.shape[-1], num_frames=originals.shape[1])
        return fresh_clips([item.facts for item in items], world, seed)[0]


class ToyProbe(Benchmark):
    """Attributes of toy clips read from a tokenizer's tokens by a linear probe, fitted on training clips.

    Args:
        train: Shards of the clips that the probe is fitted on; None takes `<data>/train`.
    """

    predicts: ClassVar[Predicts] = "features"
    splits: ClassVar[tuple[str, ...]] = ("held_out",)
    metrics: ClassVar[tuple[str, ...]] = ("toy_probe",)
    default_prompt: ClassVar[str | None] = None
    places: ClassVar[tuple[str, ...]] = ("train",)

    def __init__(self, train: str | None = None) -> None:
        self.train = train

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read videos or cached features: training clips, then those of `<data>/<split>`, or of the folder itself."""
        fitted = shard_items(expand_shards(self.train or str(Path(data) / "train")), _clip_items, features=True)
        tested = shard_items(split_shards(data, split), _clip_items, features=True)
        numbered = enumerate([*((item, True) for item in fitted.items), *((item, False) for item in tested.items)])
        items = (replace(item, facts={**item.facts, "fit": fit, "order": at}) for at, (item, fit) in numbered)
        return BenchmarkData(tuple(items), {f"train/{k}": v for k, v in fitted.files.items()} | dict(tested.files))


def read_toy_clips(folder: str | Path, split: str) -> BenchmarkData:
    """Read every clip of the shards in `<folder>/<split>`, or in the folder itself, with its caption and facts."""
    return shard_items(split_shards(folder, split), _clip_items)


def split_shards(folder: str | Path, split: str) -> list[str]:
    """Return the shards in `<folder>/<split>`, or in the folder itself."""
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
    yield replace(sample.items[0], references=(text["caption"],), facts=facts)


def fresh_clips(texts: Sequence[Mapping[str, Any]], world: ToyWorld, seed: int) -> tuple[Tensor, list[Scene]]:
    """Render other real clips of the same captions, as a perfect generator would.

    Args:
        texts: Samples of held-out or of training combinations, with `attributes`.
        world: Renders them.
        seed: Of the start positions.

    Returns:
        uint8 (N, F, 3, H, W), and the scenes.
    """
    targets = [tuple(text["attributes"][name] for name in ATTRIBUTES) for text in texts]
    held_out = set(world.combinations("held_out"))
    rng, stock = np.random.default_rng(seed), defaultdict[tuple[str, ...], list[Scene]](list)
    scenes = []
    for names in targets:
        while not stock[names]:
            scene = world.sample("held_out" if names in held_out else "train", rng)
            stock[tuple(getattr(scene, name) for name in ATTRIBUTES)].append(scene)
        scenes.append(stock[names].pop())
    return torch.from_numpy(np.stack([world.render(scene) for scene in scenes])), scenes
