"""Answer a benchmark's questions, or caption its videos, with a trained video LLM.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C feature width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from divot_datamodules.decoding.video import DecodeError
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.evaluation.item_media import read_item
from divot_lightning.evaluation.runners.described_clips import describe_resize
from divot_lightning.evaluation.runners.runner import Job, Runner
from divot_lightning.inference.ask import answer_each, caption_prompt, question_prompt
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import BenchmarkItem
from divot_lightning.parts.segments import Segment


class QuestionRunner(Runner):
    """Answer items with a run's models, one video at a time."""

    components: tuple[str, ...] = ("video_llm", "tokenizer")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # The language model is loaded for the first question, so never where stored answers are scored.
        self.models = LoadedRun(job.run, template=job.config.template, device=job.device)
        find_component(job.run, "video_llm")
        self.clip, self.template = self.models.clip, self.models.template
        self.prompt = self.config.prompt or self.benchmark.default_prompt

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the answers besides the models, as JSON values."""
        temperature, clip = self.config.temperature or 0.0, self.clip
        sampled = {"temperature": temperature, "top_p": self.config.top_p, "seed": self.config.seed}
        return {
            "prompt": self.prompt or "the instruction for captions that the template has",
            "template": self.template,
            "decoding": {
                **(sampled if temperature else {"greedy": True}),
                "max_new_tokens": self.config.max_new_tokens,
            },
            "clips": {
                "max_clips": self.config.max_clips,
                "frames": len(clip.frame_numbers),
                "seconds": clip.seconds,
                "height": clip.height,
                "width": clip.width,
                "resize": describe_resize(clip),
            },
        }

    def is_finished(self, row: Row) -> bool:
        """Return whether an item was answered."""
        return "prediction" in row

    def run(self, items: Sequence[tuple[int, BenchmarkItem]], rows: Mapping[str, Row]) -> list[Row]:
        """Answer the questions about one video.

        Args:
            items: Numbers within the benchmark, and items of the same video and part.
            rows: Rows of items that were answered before; not used.

        Returns:
            One row per item, with an `error` instead of an answer if the video cannot be decoded.
        """
        try:
            video = read_item(items[0][1], self.clip, self.config.max_clips)
        except DecodeError as error:
            return [{**_row(item), "error": str(error)} for _, item in items]
        features = self.models.encode(torch.from_numpy(video))
        prompts = [self._segments(item, len(features)) for _, item in items]
        # Each with a seed of its own, so that an answer depends neither on the process that samples it nor on which
        # items were finished before.
        predictions = answer_each(
            self.models,
            prompts,
            features,
            [item_seed(self.config.seed, number) for number, _ in items],
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature or 0.0,
            top_p=self.config.top_p,
        )
        return [{**_row(item), "prediction": text} for (_, item), text in zip(items, predictions, strict=True)]

    def _segments(self, item: BenchmarkItem, num_clips: int) -> list[Segment]:
        prompt = self.benchmark.prompt(item, self.config.prompt)
        if prompt is None:
            return caption_prompt(num_clips, self.template, tasks=self.models.tasks)
        return question_prompt(prompt, num_clips, self.template)


def item_seed(seed: int, number: int) -> int:
    """Return the sampling seed of one item: different for each item, the same on every process.

    >>> item_seed(0, 0) == item_seed(0, 0), item_seed(0, 1) == item_seed(1, 0)
    (True, False)
    """
    return (seed * 1_000_003 + number) % 2**63


def _row(item: BenchmarkItem) -> Row:
    entries: dict[str, str | None] = {"id": item.id, "media": item.media_name, "group": item.group}
    entries |= {"question": item.question, "target": item.answer}
    return {name: value for name, value in entries.items() if value}
