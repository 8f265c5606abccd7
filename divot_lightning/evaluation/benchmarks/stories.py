"""Benchmarks of stories: sentences and clips in turn, told from instructions."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

from divot_datamodules.toy.stories import one_clip_instruction
from divot_datamodules.toy.world import ATTRIBUTES
from divot_lightning.errors import UserError, require_one_of
from divot_lightning.evaluation.benchmarks.shard_items import ShardSample, shard_items
from divot_lightning.evaluation.benchmarks.toy import TOY_SPLITS, split_shards
from divot_lightning.evaluation.metrics.toy_story import ToyStory
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData, BenchmarkItem, Predicts
from divot_lightning.parts.metrics import BenchmarkMetric

MeasuredClips = Literal["told", "independent", "reconstructed"]


class StoryBenchmark(Benchmark):
    """Stories; the facts of an item are `instruction`, `sentences` and `clips`, the videos of a real story."""

    predicts: ClassVar[Predicts] = "stories"

    @abstractmethod
    def requests(self, item: BenchmarkItem) -> list[tuple[str, int]]:
        """Return instructions, each with the largest number of clips; what is told from all of them is the story.

        Without any the real sentences are taken, and the real clips are encoded and decoded.
        """

    def prompt(self, item: BenchmarkItem, text: str | None = None) -> str | None:
        """Return the instruction."""
        return str(item.facts["instruction"])


class ToyStories(StoryBenchmark):
    """Stories of the toy world, read by its exact oracle.

    Args:
        clips: Which clips are measured. "told": those of the story that the model tells. For comparison, "independent":
            each clip is the first of a story of its own, which begins with what the clip has to show, so that nothing
            but the text connects it with the others; "reconstructed": the real clips, encoded and decoded, the best
            that the de-tokenizer allows.
    """

    splits: ClassVar[tuple[str, ...]] = TOY_SPLITS
    metrics: ClassVar[tuple[str, ...]] = ("toy_story",)
    main_scores: ClassVar[tuple[str, ...]] = ("story", "clips")

    def __init__(self, clips: MeasuredClips = "told") -> None:
        require_one_of(get_args(MeasuredClips), clips=clips)
        self.clips = clips

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read every story of the shards in `<data>/<split>`, or in the folder itself."""
        return shard_items(split_shards(data, split), _story_items)

    def requests(self, item: BenchmarkItem) -> list[tuple[str, int]]:
        """Return one instruction, or one for each clip, or none; see `clips`."""
        if self.clips == "reconstructed":
            return []
        scenes, changes = item.facts["scenes"], item.facts["changes"]
        if self.clips == "told":
            return [(item.facts["instruction"], len(scenes))]
        states = [{name: scene[name] for name in ATTRIBUTES} for scene in scenes]
        return [(one_clip_instruction(state, changes), 1) for state in states]

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> list[BenchmarkMetric]:
        """Build the metric for as many clips as the longest story has."""
        return [ToyStory(max((len(item.facts["scenes"]) for item in items), default=1))]


def _story_items(sample: ShardSample) -> Iterator[BenchmarkItem]:
    text = sample.text
    if not {"story", "changes", "scenes", "background"} <= text.keys():
        raise UserError(f"the sample {sample.name!r} is no story of the toy world; make some: divot data toy-stories")
    story = {"instruction": text["story"]["instruction"], "sentences": text["story"]["texts"]}
    facts = {**text, **story, "prompt": story["instruction"], "clips": sample.clips}
    yield BenchmarkItem(sample.name, sample.media, sample.name, facts=facts)
