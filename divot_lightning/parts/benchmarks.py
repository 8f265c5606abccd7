"""The contract of a benchmark: items, what is asked about each, how an answer is read, and how all are scored.

No torch in here.
"""

import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from divot_lightning.parts.part import Part
from divot_lightning.parts.registries.kinds import METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from divot_lightning.parts.metrics import BenchmarkMetric

Predicts = Literal["answers", "clips", "reconstructions", "stories", "features", "references"]

Values = dict[str, tuple[float, int]]
"""Value and number of items, by score."""


@dataclass(frozen=True)
class FileSlice:
    """Bytes within a file, such as a member of a tar; they are read when they are needed.

    Attributes:
        path: The file.
        offset: Where the bytes begin.
        size: How many there are.
    """

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class BenchmarkItem:
    """One question, caption or clip of one video.

    Attributes:
        id: Identifies the item within the benchmark, the same in every run.
        media: The video's path or bytes, or the folder of its frames; None if the video is missing.
        media_name: Path of the video within the benchmark's folder.
        question: The question; empty for captions and clips.
        options: The options of a multiple-choice question, (A) first.
        choice: Index of the right option; None if it is not public.
        answer: The right answer of an open question; None for other items.
        references: Captions by people.
        group: The part of the benchmark that has a score of its own, such as MVBench's task; empty without parts.
        bounds: Seconds of the video's part that is shown; None shows all of it.
        frame_rate: Frames per second of a folder of numbered frames; None for a video.
        is_features: Whether the media are a video's cached features, as `divot data encode` writes them.
        problem: Why the entry in the file is invalid, empty if it is valid. An invalid item counts as `unreadable`; its
            media is the file with the entry.
        facts: Further facts, such as the `prompt` for a generated clip.
    """

    id: str
    media: Path | bytes | FileSlice | None
    media_name: str
    question: str = ""
    options: tuple[str, ...] = ()
    choice: int | None = None
    answer: str | None = None
    references: tuple[str, ...] = ()
    group: str = ""
    bounds: tuple[float, float] | None = None
    frame_rate: float | None = None
    is_features: bool = False
    problem: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> Path | bytes:
        """The media as a path or as bytes; they must be there."""
        assert self.media is not None
        return self.media.read() if isinstance(self.media, FileSlice) else self.media


@dataclass(frozen=True)
class BenchmarkData:
    """A split of a benchmark.

    Attributes:
        items: Its items, in the order of its files.
        files: The files that were read, by their names within the folder; their hashes enter the protocol.
    """

    items: tuple[BenchmarkItem, ...]
    files: Mapping[str, Path]

    @property
    def missing(self) -> list[str]:
        """Names of the missing videos, each once."""
        return list(dict.fromkeys(item.media_name for item in self.items if item.media is None))


@dataclass(frozen=True)
class Prediction:
    """What a model made of one item.

    Attributes:
        answer: The text that it wrote; empty if the video could not be read.
        parsed: What `Benchmark.parse` read from the answer.
        clip: The clip that it generated or reconstructed, uint8 (F, 3, H, W); None for answers and stories.
        original: The clip of the item's video, of the same shape; None for answers and stories.
        sentences: Those of a story, in order.
        clips: The clip after each sentence, uint8 (F, 3, H, W); None after a sentence that the model opened none after.
        features: The tokenizer's features of the item's video, float32 (Q, C), where nothing else is predicted.
    """

    answer: str = ""
    parsed: Any = None
    clip: "Tensor | None" = None
    original: "Tensor | None" = None
    sentences: tuple[str, ...] = ()
    clips: "tuple[Tensor | None, ...]" = ()
    features: "Tensor | None" = None


@dataclass(frozen=True)
class Submission:
    """A file for a benchmark's server.

    Attributes:
        path: The file.
        count: Number of answers in it.
        filled: How many of these chose no option.
        option: Index of the option that replaces those.
    """

    path: Path
    count: int
    filled: int
    option: int


class Benchmark(Part, ABC):
    """A benchmark; `divot evaluate RUN --benchmark NAME` predicts its items with a run's models and scores them.

    Attributes:
        predicts: What a model has to make: "answers" to questions about videos (a caption is an answer), "clips" from
            prompts, "reconstructions" of clips, "stories" (sentences and clips in turn) from instructions, or
            "features" of clips. It decides which models of the run are loaded. Of "references" the benchmark makes the
            clips itself, as a bound for the clips of models.
        splits: Its splits, the default one first.
        metrics: Short names or class paths of its metrics; `make_metrics` builds them.
        main_scores: Scores by importance: the first of these that was measured is printed first.
        default_prompt: Text with {question}, and {options} for multiple choice; None asks for a caption with the words
            that the run was trained on.
        is_open: Whether answers are free text that a judge may compare with `item.answer`.
        places: Names of its own settings that say where data are. The protocol has what is read there, not where it is.
    """

    predicts: ClassVar[Predicts] = "answers"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    metrics: ClassVar[tuple[str, ...]] = ()
    main_scores: ClassVar[tuple[str, ...]] = ()
    default_prompt: ClassVar[str | None] = "{question}"
    is_open: ClassVar[bool] = False
    places: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the items of a split; a missing or wrong file is a `UserError`, a missing video an item without media.

        Args:
            data: Folder of the benchmark, as the user gave it.
            split: One of `splits`.
        """

    def prompt(self, item: BenchmarkItem, text: str | None = None) -> str | None:
        """Return what is asked about an item, or the caption that a clip is generated from.

        Args:
            item: The item.
            text: Replaces `default_prompt`.
        """
        text = text or self.default_prompt
        letters = zip(string.ascii_uppercase, item.options, strict=False)
        options = "\n".join(f"({letter}) {option}" for letter, option in letters)
        return None if text is None else text.format(question=item.question, options=options)

    def parse(self, answer: str, item: BenchmarkItem) -> Any:
        """Return what an answer says, as a JSON value: the text itself, or the index of an option."""
        return answer

    def reference_clips(self, items: Sequence[BenchmarkItem], originals: "Tensor", seed: int) -> "Tensor":
        """Return the clips of a benchmark that predicts "references".

        Args:
            items: All items whose video can be read.
            originals: Their clips, uint8 (N, F, 3, H, W).
            seed: Of the evaluation.

        Returns:
            uint8, of the same shape.
        """
        raise NotImplementedError("a benchmark that predicts references defines reference_clips")

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> "Sequence[BenchmarkMetric]":
        """Build the metrics.

        Args:
            items: All items, for metrics that have a score for each group.
            device: Where networks of metrics run.
        """
        return [METRICS.build(name, {}) for name in self.metrics]

    def score(
        self,
        metrics: "Sequence[BenchmarkMetric]",
        measured: Sequence[Mapping[str, Any]],
        items: Sequence[BenchmarkItem],
    ) -> Values:
        """Return all scores of the measured items.

        Args:
            metrics: Those of `make_metrics`.
            measured: For each item the entries that the metrics' `measure` returned.
            items: The items, in the same order; those without a readable video only for answers, which are then empty.
        """
        values: Values = {}
        for metric in metrics:
            metric.reset()
            metric.update(measured, items)
            found, counts = metric.compute(), metric.counts()
            values |= {name: (float(value), counts.get(name, len(items))) for name, value in found.items()}
        return values

    def describe(self) -> dict[str, Any]:
        """Return the rules by which answers are read, for the protocol of every score."""
        return {}

    def check(self, items: Sequence[BenchmarkItem]) -> None:
        """Raise a `UserError` if the settings do not fit the items; called before anything is predicted."""

    def write_submission(
        self, folder: Path, items: Sequence[BenchmarkItem], rows: Sequence[Mapping[str, Any]]
    ) -> Submission | None:
        """Write the file for the benchmark's server if its answers are not public; None without a server.

        Args:
            folder: Of the evaluation.
            items: The items.
            rows: Their lines in predictions.jsonl, with `chosen`, the parsed answer.
        """
        return None
