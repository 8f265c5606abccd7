"""Make the clips of a benchmark, generated from prompts or reconstructed, and measure each beside the real clip.

Shape letters: F frames, H height, W width.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import decode_clip, image_clip
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, DecodeError
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.kept_clips import find_clip, keep_clip, keep_comparison
from divot_lightning.evaluation.predictions import Row
from divot_lightning.evaluation.question_runner import describe_resize, item_seed
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, Prediction
from divot_lightning.parts.head_sampling import sampling_of
from divot_lightning.parts.metrics import BenchmarkMetric

MEASURED_BY = "measured_by"
"""Entry of a row: for each metric a digest of what decides its measurements."""


class ClipRunner(ABC):
    """Make and measure clips with a run's models, one at a time.

    Args:
        config: Of the evaluation.
        metrics: Of the benchmark; a clip that was measured by all of them is finished.
        models: Encode and decode clips.
        folder: Of the evaluation.
    """

    components: tuple[str, ...]

    def __init__(
        self, config: EvaluationConfig, metrics: Sequence[BenchmarkMetric], models: LoadedRun, folder: Path
    ) -> None:
        self.config, self.metrics, self.models, self.folder = config, metrics, models, folder
        # It belongs to the model, as the sampling settings of a head do: ablations compare objectives.
        self.sampling_config: dict[str, Any] = {"objective": asdict(models.detokenizer.config)["objective"]}
        self.digests = {type(metric).__name__: _digest(metric) for metric in metrics}

    @abstractmethod
    def make(self, item: BenchmarkItem, original_FCHW: Tensor, seed: int) -> Tensor:
        """Make the clip of an item, uint8 (F, 3, H, W)."""

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        clip = self.models.decoded_clip
        return {
            "sampling": asdict(self.models.detokenizer.config.sampling),
            "clips": {"frames": clip.frames, "fps": clip.fps, "height": clip.height, "width": clip.width},
            "real_clips": f"the middle {clip.seconds:g} s of each video; {describe_resize(clip)}",
        }

    def is_finished(self, row: Row) -> bool:
        """Return whether an item's clip was made and measured by all metrics."""
        return not self._missing(row)

    def run(self, items: Sequence[tuple[int, BenchmarkItem]], rows: Mapping[str, Row]) -> list[Row]:
        """Make one clip for each item, unless it is stored, and measure it.

        Args:
            items: Numbers within the benchmark, and items.
            rows: Earlier rows, by item; their measurements are not repeated.

        Returns:
            One row per item, with an `error` and no measurements if the real video cannot be decoded.
        """
        return [self._one(number, item, rows.get(item.id, {})) for number, item in items]

    def _missing(self, row: Row) -> list[BenchmarkMetric]:
        """Return the metrics that have not measured a row, or did so with another network."""
        by = row.get(MEASURED_BY, {})
        return [metric for metric in self.metrics if by.get(type(metric).__name__) != _digest(metric)]

    def _one(self, number: int, item: BenchmarkItem, before: Row) -> Row:
        row: Row = {"id": item.id, "media": item.media_name}
        if "prompt" in item.facts:
            row["prompt"] = item.facts["prompt"]
        try:
            read = image_clip if Path(item.media_name).suffix.lower().lstrip(".") in IMAGE_SUFFIXES else decode_clip
            original = torch.from_numpy(read(item.content, self.models.decoded_clip).video.copy())
        except DecodeError as error:
            return {**row, "error": str(error)}
        prediction = Prediction(clip=self._clip(number, item, original), original=original)
        for metric in self._missing(before):
            row |= metric.measure(prediction, item)
        kept = {name: value for name, value in before.items() if name != "error"}
        return {**kept, **row, MEASURED_BY: {**before.get(MEASURED_BY, {}), **self.digests}}

    def _clip(self, number: int, item: BenchmarkItem, original_FCHW: Tensor) -> Tensor:
        """Return the stored clip, or make it; the item's seed makes both equal."""
        stored = find_clip(self.folder, number)
        if stored is not None:
            return torch.from_numpy(stored.copy())
        clip_FCHW = self.make(item, original_FCHW, item_seed(self.config.seed, number))
        chosen = self.config.generation
        if chosen.store_clips or number < chosen.kept_clips:
            keep_clip(self.folder, number, clip_FCHW.numpy())
        return clip_FCHW


class GenerationRunner(ClipRunner):
    """Generate clips from the prompts of a benchmark.

    Args:
        run: Run folder of a stage that trains a video LLM.
        config: Of the evaluation.
        benchmark: Says what is asked.
        metrics: Of the benchmark.
        device: Where the models run.
        folder: Of the evaluation.
    """

    components: tuple[str, ...] = ("video_llm", "tokenizer", "detokenizer")

    def __init__(
        self,
        run: str | Path,
        config: EvaluationConfig,
        benchmark: Benchmark,
        metrics: Sequence[BenchmarkMetric],
        device: str,
        folder: Path,
    ) -> None:
        chosen = config.generation
        self.benchmark = benchmark
        self.temperature = 1.0 if config.temperature is None else config.temperature
        self.request = ClipRequest(chosen.request, chosen.opening)
        models = LoadedRun(run, chosen.detokenizer, template=config.template, device=device, head=chosen.head)
        models.check_fit()
        super().__init__(config, metrics, models, folder)
        self.sampling_config |= {"head": sampling_of(models.video_llm.head)}

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        return {
            "prompt": "one caption per video",
            "template": self.models.template,
            **self.request.describe(),
            "decoding": {"temperature": self.temperature, "seed": self.config.seed},
            **super().describe(),
        }

    def make(self, item: BenchmarkItem, original_FCHW: Tensor, seed: int) -> Tensor:
        """Generate a clip from the item's prompt."""
        prompt = str(self.benchmark.prompt(item))
        ((clip_FCHW, _),) = self.models.generate(
            [prompt], request=self.request, temperature=self.temperature, seed=seed
        )
        return clip_FCHW


class ReconstructionRunner(ClipRunner):
    """Encode the clips of a benchmark and decode them again.

    Args:
        run: Run folder of a stage that trains or uses a tokenizer and a de-tokenizer.
        config: Of the evaluation.
        metrics: Of the benchmark.
        device: Where the models run.
        folder: Of the evaluation.
    """

    components: tuple[str, ...] = ("tokenizer", "detokenizer")

    def __init__(
        self,
        run: str | Path,
        config: EvaluationConfig,
        metrics: Sequence[BenchmarkMetric],
        device: str,
        folder: Path,
    ) -> None:
        super().__init__(config, metrics, LoadedRun(run, device=device), folder)
        self.num_tokens = config.generation.num_tokens

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        kept = {} if self.num_tokens is None else {"num_tokens": self.num_tokens}
        return {"decoding": {"seed": self.config.seed, **kept}, **super().describe()}

    def make(self, item: BenchmarkItem, original_FCHW: Tensor, seed: int) -> Tensor:
        """Reconstruct the clip, with the item's own noise."""
        tokens_1QC = self.models.encode(original_FCHW[None], self.num_tokens)
        (clip_1FCHW,) = self.models.decode(tokens_1QC, torch.Generator().manual_seed(seed))
        return clip_1FCHW[0]

    def _clip(self, number: int, item: BenchmarkItem, original_FCHW: Tensor) -> Tensor:
        clip_FCHW = super()._clip(number, item, original_FCHW)
        if number < self.config.generation.kept_clips:
            keep_comparison(self.folder, number, original_FCHW.numpy(), clip_FCHW.numpy(), self.models.fps)
        return clip_FCHW


def _digest(metric: BenchmarkMetric) -> str:
    return hashlib.sha256(json.dumps(metric.describe(), sort_keys=True).encode()).hexdigest()[:16]
