"""Generates the clips that a benchmark asks for, and measures each one beside the real one.

Shape letters: F frames, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.benchmarks.items import BenchmarkItem
from divot_datamodules.clip_sampling import decode_clip
from divot_datamodules.decoding import DecodeError
from divot_lightning.evaluation.asking import RESIZE, item_seed
from divot_lightning.evaluation.clip_similarity import ClipTextSimilarity
from divot_lightning.evaluation.kept_clips import keep_clip
from divot_lightning.evaluation.predictions import Row
from divot_lightning.evaluation.protocol import folder_sha256
from divot_lightning.evaluation.settings import EvaluationSettings
from divot_lightning.evaluation.toy_features import toy_clip_features
from divot_lightning.evaluation.toy_oracle import read_clips
from divot_lightning.evaluation.video_features import VideoFeatures, load_video_features
from divot_lightning.head_sampling import sampling_of
from divot_lightning.inference.generate import ClipGenerator

TOY_FEATURES = "fixed toy features, scaled by their deviation over the real clips"


class GenerationRunner:
    """A run's models, asked for one clip at a time.

    Args:
        run: Run folder of a stage that trains a video LLM.
        settings: Of the evaluation.
        toy: Whether the clips are those of the toy world.
        device: Where the models run.
        folder: Of the evaluation.
    """

    components: tuple[str, ...] = ("video_llm", "tokenizer", "detokenizer")

    def __init__(self, run: str | Path, settings: EvaluationSettings, toy: bool, device: str, folder: Path) -> None:
        chosen = settings.generation
        self.settings, self.toy, self.folder = settings, toy, folder
        self.temperature = 1.0 if settings.temperature is None else settings.temperature
        self.generator = ClipGenerator.from_run(
            run, chosen.detokenizer, template=settings.template, device=device, head=chosen.head
        )
        self.model_settings: dict[str, Any] = {"head": sampling_of(self.generator.video_llm.head)}
        self.similarity = ClipTextSimilarity(chosen.clip_model, device) if chosen.clip_model else None
        self.features: VideoFeatures | None = None
        if chosen.video_features:
            options = chosen.video_feature_options
            self.features = load_video_features(chosen.video_features, options=options, device=device)

    def describe(self) -> dict[str, Any]:
        """Says what decides the numbers besides the models, as JSON values."""
        clip, clip_model = self.generator.drawing.clip, self.settings.generation.clip_model
        described: dict[str, Any] = {
            "prompt": "one caption per video",
            "template": self.generator.template,
            "decoding": {"temperature": self.temperature, "seed": self.settings.seed},
            "sampling": asdict(self.generator.drawing.detokenizer.config.sampling),
            "clips": {"frames": clip.frames, "fps": clip.fps, "height": clip.height, "width": clip.width},
            "real_clips": f"the middle {clip.seconds:g} s of each video; {RESIZE}",
        }
        if clip_model:
            described["clip_model"] = {"name": Path(clip_model).name, "sha256": folder_sha256(clip_model)}
        if self.features is not None:
            described["video_features"] = self.features.source
        if self.toy:
            described["toy_features"] = TOY_FEATURES
        return described

    def run(self, items: Sequence[tuple[int, BenchmarkItem]]) -> list[Row]:
        """Generates and measures one clip for each item.

        Args:
            items: Numbers within the benchmark, and items.

        Returns:
            One row per item; where the real video cannot be decoded, with an `error` and nothing measured.
        """
        return [self._one(number, item) for number, item in items]

    def _one(self, number: int, item: BenchmarkItem) -> Row:
        assert item.media is not None
        row: Row = {"id": item.id, "media": item.media_name, "prompt": item.facts["prompt"]}
        try:
            real = torch.from_numpy(decode_clip(item.media, self.generator.drawing.clip).video.copy())[None]
        except DecodeError as error:
            return {**row, "error": str(error)}
        seed = item_seed(self.settings.seed, number)
        (clip_FCHW,) = self.generator.generate_clips([row["prompt"]], temperature=self.temperature, seed=seed)
        if number < self.settings.generation.kept_clips:
            keep_clip(self.folder, number, clip_FCHW.numpy())
        return {**row, **self._measured(clip_FCHW[None], real, row["prompt"])}

    def _measured(self, made_1FCHW: Tensor, real_1FCHW: Tensor, prompt: str) -> Row:
        measured: Row = {}
        if self.similarity is not None:
            measured["clip_similarity"] = self.similarity(made_1FCHW, [prompt]).item()
        if self.features is not None:
            measured["features"] = self.features(made_1FCHW)[0].tolist()
            measured["real_features"] = self.features(real_1FCHW)[0].tolist()
        if self.toy:
            measured["reading"] = asdict(read_clips(made_1FCHW)[0])
            measured["toy_features"] = toy_clip_features(made_1FCHW)[0].tolist()
            measured["real_toy_features"] = toy_clip_features(real_1FCHW)[0].tolist()
        return measured
