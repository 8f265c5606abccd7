"""Let a run tell the stories of a benchmark, and measure each.

Shape letters: N clips, F frames, H height, W width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import decode_clip
from divot_datamodules.decoding.video import DecodeError
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.stories import StoryBenchmark
from divot_lightning.evaluation.chosen_items import Numbered
from divot_lightning.evaluation.kept_clips import KEPT
from divot_lightning.evaluation.runners.clip_runners import GenerationRunner
from divot_lightning.evaluation.runners.question_runner import item_seed
from divot_lightning.evaluation.runners.runner import MEASURED_BY, Job
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.inference.results import Story, StoryPart
from divot_lightning.io.jsonl import Row
from divot_lightning.models.video_llm.story import StorySampling
from divot_lightning.parts.benchmarks import BenchmarkItem, FileSlice, Prediction


class StoryRunner(GenerationRunner):
    """Tell a story for each item; words are the most likely ones, features are sampled."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if not isinstance(job.benchmark, StoryBenchmark):
            raise UserError(f"{type(job.benchmark).__name__} predicts stories; derive it from StoryBenchmark")
        self.stories = job.benchmark
        self.words = StorySampling(job.config.max_new_tokens, temperature=self.temperature)

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the stories besides the models, as JSON values."""
        described = {name: value for name, value in super().describe().items() if name != "real_clips"}
        decoding = {**described["decoding"], "max_new_tokens": self.words.max_new_tokens}
        return {**described, "prompt": "one instruction per story", "decoding": decoding}

    def run(self, items: Sequence[Numbered], rows: Mapping[str, Row]) -> list[Row]:
        """Tell a story for each item and measure it; an item whose videos cannot be decoded has an `error` instead."""
        return [self._one(number, item) for number, item in items]

    def _one(self, number: int, item: BenchmarkItem) -> Row:
        row: Row = {"id": item.id, "media": item.media_name, "prompt": item.facts["prompt"]}
        seed, requests = item_seed(self.config.seed, number), self.stories.requests(item)
        try:
            story = self.tell(item, requests, seed) if requests else self.reconstruct(item, seed)
        except DecodeError as error:
            return {**row, "error": str(error)}
        if number < self.config.generation.kept_clips:
            story.save(self.folder / KEPT / str(number))
        sentences = tuple(part.text for part in story.parts)
        clips = tuple(part.video_FCHW for part in story.parts)
        for metric in self.metrics:
            row |= metric.measure(Prediction(sentences=sentences, clips=clips), item)
        return {**row, "sentences": list(sentences), MEASURED_BY: self.digests}

    def tell(self, item: BenchmarkItem, requests: Sequence[tuple[str, int]], seed: int) -> Story:
        """Tell the stories of all requests, and join them to one."""
        pipeline, parts = DivotPipeline(self.models), list[StoryPart]()
        for at, (instruction, count) in enumerate(requests):
            told = pipeline.story(instruction, count, seed=item_seed(seed, at), sampling=self.words)
            parts += told.parts[:count]
        return Story(str(item.facts["instruction"]), tuple(parts), self.models.fps, self.models.settings(seed=seed))

    def reconstruct(self, item: BenchmarkItem, seed: int) -> Story:
        """Encode and decode the clips of the real story.

        Raises:
            DecodeError: One of its videos is damaged.
        """
        real_NFCHW = torch.stack([self._read(clip) for clip in item.facts["clips"]])
        decoded = DivotPipeline(self.models).decode(self.models.encode(real_NFCHW), seed=seed)
        parts = [StoryPart(text, "video", clip) for text, clip in zip(item.facts["sentences"], decoded, strict=True)]
        return Story(str(item.facts["instruction"]), tuple(parts), self.models.fps, self.models.settings(seed=seed))

    def _read(self, clip: FileSlice | Path | bytes) -> Tensor:
        content = clip.read() if isinstance(clip, FileSlice) else clip
        return torch.from_numpy(decode_clip(content, self.models.decoded_clip).video.copy())
