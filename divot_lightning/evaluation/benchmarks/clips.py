"""Benchmarks of clips: generated from prompts, or reconstructed; with networks that measure them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.shards.sources import find_jsonl
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.shard_items import MEDIA, folder_items, shard_items
from divot_lightning.evaluation.metrics.clip_similarity import ClipSimilarity
from divot_lightning.evaluation.metrics.frechet_video import FrechetVideoDistance
from divot_lightning.evaluation.metrics.image_quality import LPIPS, Network
from divot_lightning.evaluation.metrics.published import PUBLISHED, PublishedReconstruction
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData, BenchmarkItem, Predicts
from divot_lightning.parts.metrics import BenchmarkMetric


class ClipBenchmark(Benchmark):
    """Clips that a run generates from captions.

    Args:
        clip_model: transformers folder of a CLIP model for the similarity with the caption; None measures none.
        video_features: Feature network of the Frechet video distance; None measures none.
        video_feature_options: Arguments of the network.
    """

    predicts: ClassVar[Predicts] = "clips"
    main_scores: ClassVar[tuple[str, ...]] = ("frechet_video_distance", "clip_similarity")

    def __init__(
        self,
        clip_model: str | None = None,
        video_features: str | None = None,
        video_feature_options: dict[str, Any] | None = None,
    ) -> None:
        self.clip_model, self.video_features = clip_model, video_features
        self.video_feature_options = video_feature_options

    def prompt(self, item: BenchmarkItem, text: str | None = None) -> str | None:
        """Return the caption."""
        return str(item.facts["prompt"])

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> list[BenchmarkMetric]:
        """Build the metrics of the networks that were given, besides those that `metrics` names."""
        chosen = list(super().make_metrics(items, device))
        if self.clip_model:
            chosen.append(ClipSimilarity(self.clip_model, device))
        if self.video_features:
            chosen.append(FrechetVideoDistance(self.video_features, self.video_feature_options, device))
        return chosen

    def check(self, items: Sequence[BenchmarkItem]) -> None:
        """Refuse to generate clips that no metric would measure."""
        if not (self.metrics or self.clip_model or self.video_features):
            raise UserError(
                "nothing would be measured on the clips: give generation.clip_model or\n"
                "generation.video_features, or both, see docs/using/evaluation.md"
            )


class Reconstruction(ClipBenchmark):
    """Clips of a folder of videos or of shards, encoded and decoded again: PSNR, SSIM, LPIPS, Frechet video distance.

    Args:
        video_features: Feature network of the Frechet video distance; None measures none.
        video_feature_options: Arguments of the network.
        lpips: File with the weights of LPIPS's network; None measures no LPIPS.
        lpips_network: The network of that file.
    """

    predicts: ClassVar[Predicts] = "reconstructions"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    metrics: ClassVar[tuple[str, ...]] = ("psnr", "ssim")
    main_scores: ClassVar[tuple[str, ...]] = ("psnr",)

    def __init__(
        self,
        video_features: str | None = None,
        video_feature_options: dict[str, Any] | None = None,
        lpips: str | None = None,
        lpips_network: Network = "alex",
    ) -> None:
        super().__init__(None, video_features, video_feature_options)
        self.lpips, self.lpips_network = lpips, lpips_network

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Find the clips: videos and pictures in a folder and its folders, else the samples of shards.

        A file `<name>_recon` beside `<name>_gt` of the same suffix is no clip, but its published reconstruction.

        Args:
            data: Folder, video, tar, jsonl, glob or URL.
            split: "all".
        """
        folder = Path(data)
        if folder.is_dir() and (found := folder_items(folder)).items:
            return BenchmarkData(tuple(_with_published(found.items)), found.files)
        if folder.is_file() and suffix_of(folder) in MEDIA:
            return BenchmarkData((BenchmarkItem(folder.name, folder, folder.name),), {})
        return shard_items(find_jsonl(str(data)) or expand_shards(str(data)), lambda found: found.items)

    def prompt(self, item: BenchmarkItem, text: str | None = None) -> str | None:
        """Return nothing: a clip is reconstructed from its own tokens."""
        return None

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> list[BenchmarkMetric]:
        """Build PSNR and SSIM, LPIPS if its weights were given, and the metrics of other networks."""
        chosen = list(super().make_metrics(items, device))
        if self.lpips:
            chosen.append(LPIPS(self.lpips, self.lpips_network, device))
        if any(PUBLISHED in item.facts for item in items):
            chosen.append(PublishedReconstruction())
        return chosen


def _with_published(items: Sequence[BenchmarkItem]) -> Iterator[BenchmarkItem]:
    """Yield the items that are originals, with the files of their published reconstructions."""
    originals = {item.media: item for item in items if isinstance(item.media, Path)}
    stems = {path: path.stem.removesuffix("_gt") for path in originals if path.stem.endswith("_gt")}
    named = {path: path.with_stem(f"{stem}_recon") for path, stem in stems.items()}
    pairs = {path: file for path, file in named.items() if file in originals}
    for path, item in originals.items():
        if path in pairs:
            yield replace(item, facts={**item.facts, PUBLISHED: str(pairs[path])})
        elif path not in pairs.values():
            yield item
