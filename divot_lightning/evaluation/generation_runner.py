"""Generate the clips for a benchmark's captions, and measure each one beside the real clip.

Shape letters: F frames, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import decode_clip
from divot_datamodules.decoding.video import DecodeError
from divot_lightning.evaluation.benchmarks.items import BenchmarkItem
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.kept_clips import find_clip, keep_clip
from divot_lightning.evaluation.metrics.clip_metrics import MEASURED_BY, ClipMetrics
from divot_lightning.evaluation.predictions import Row
from divot_lightning.evaluation.question_runner import RESIZE, item_seed
from divot_lightning.inference.generate import ClipGenerator
from divot_lightning.parts.head_sampling import sampling_of


class GenerationRunner:
    """Generate and measure clips with a run's models, one at a time.

    Args:
        run: Run folder of a stage that trains a video LLM.
        config: Of the evaluation.
        toy: Whether the clips are those of the toy world.
        device: Where the models run.
        folder: Of the evaluation.
    """

    components: tuple[str, ...] = ("video_llm", "tokenizer", "detokenizer")

    def __init__(self, run: str | Path, config: EvaluationConfig, toy: bool, device: str, folder: Path) -> None:
        chosen = config.generation
        self.config, self.folder = config, folder
        self.temperature = 1.0 if config.temperature is None else config.temperature
        self.generator = ClipGenerator.from_run(
            run, chosen.detokenizer, template=config.template, device=device, head=chosen.head
        )
        self.sampling_config: dict[str, Any] = {"head": sampling_of(self.generator.video_llm.head)}
        self.metrics = ClipMetrics(chosen, toy, device)

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        clip, detokenizer = self.generator.reconstructor.clip, self.generator.reconstructor.detokenizer.config
        return {
            "prompt": "one caption per video",
            "template": self.generator.template,
            "decoding": {"temperature": self.temperature, "seed": self.config.seed},
            "sampling": asdict(detokenizer)["sampling"],
            "objective": asdict(detokenizer)["objective"],
            "clips": {"frames": clip.frames, "fps": clip.fps, "height": clip.height, "width": clip.width},
            "real_clips": f"the middle {clip.seconds:g} s of each video; {RESIZE}",
        }

    def describe_metrics(self) -> Mapping[str, Any]:
        """Return the networks that measure the clips, by metric, as JSON values."""
        return self.metrics.described

    def is_finished(self, row: Row) -> bool:
        """Return whether an item's clip was generated and measured with all metrics of the config."""
        return not self.metrics.missing(row)

    def run(self, items: Sequence[tuple[int, BenchmarkItem]], rows: Mapping[str, Row]) -> list[Row]:
        """Generate one clip for each item, unless it is stored, and measure it.

        Args:
            items: Numbers within the benchmark, and items.
            rows: Earlier rows, by item; their measurements are not repeated.

        Returns:
            One row per item, with an `error` and no measurements if the real video cannot be decoded.
        """
        return [self._one(number, item, rows.get(item.id, {})) for number, item in items]

    def _one(self, number: int, item: BenchmarkItem, before: Row) -> Row:
        assert item.media is not None
        row: Row = {"id": item.id, "media": item.media_name, "prompt": item.facts["prompt"]}
        try:
            real = torch.from_numpy(decode_clip(item.media, self.generator.reconstructor.clip).video.copy())[None]
        except DecodeError as error:
            return {**row, "error": str(error)}
        generated_FCHW = self._clip(number, row["prompt"])
        measured = self.metrics.measure(generated_FCHW[None], real, row["prompt"], self.metrics.missing(before))
        by = {**before.get(MEASURED_BY, {}), **measured[MEASURED_BY]}
        kept = {name: value for name, value in before.items() if name != "error"}
        return {**kept, **row, **measured, MEASURED_BY: by}

    def _clip(self, number: int, prompt: str) -> Tensor:
        """Return the stored clip, or generate it; the item's seed makes both equal."""
        stored = find_clip(self.folder, number)
        if stored is not None:
            return torch.from_numpy(stored.copy())
        seed = item_seed(self.config.seed, number)
        (clip_FCHW,) = self.generator.generate_clips([prompt], temperature=self.temperature, seed=seed)
        if self.config.generation.store_clips or number < self.config.generation.kept_clips:
            keep_clip(self.folder, number, clip_FCHW.numpy())
        return clip_FCHW
