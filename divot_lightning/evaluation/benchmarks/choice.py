"""Multiple-choice benchmarks: settings, prompt and reading of the chosen option."""

import csv
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from divot_lightning.errors import UserError
from divot_lightning.evaluation.answers.accuracy import ChoiceAccuracy, parse_choice
from divot_lightning.evaluation.config import CHOICE_PROMPT, ChoiceRule
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, Submission
from divot_lightning.parts.metrics import BenchmarkMetric

VIDEOLLAMA2_UNPARSED_AS = 2
"""Index of the option that VideoLLaMA 2 takes for an answer that chooses none."""

FALLBACK = 2
"""Index of the option that replaces an answer without a choice if the config names none; servers need an option."""


class ChoiceBenchmark(Benchmark):
    """Questions with options; the score is the accuracy, with groups the mean of the groups' accuracies.

    Args:
        choice_rule: How an option is read from an answer, see `parse_choice`.
        unparsed_as: Index of the option, from 0, that an answer without a choice counts as. None counts it as wrong;
            with VideoLLaMA 2's rules it counts as option 2, as in its code.

    Raises:
        UserError: `unparsed_as` is negative.
    """

    default_prompt: ClassVar[str | None] = CHOICE_PROMPT
    main_scores: ClassVar[tuple[str, ...]] = ("mean_of_groups", "all")

    def __init__(self, choice_rule: ChoiceRule = "letter_or_text", unparsed_as: int | None = None) -> None:
        if unparsed_as is not None and unparsed_as < 0:
            raise UserError(f"unparsed_as is {unparsed_as}; options are counted from 0")
        if unparsed_as is None and choice_rule.startswith("videollama2"):
            unparsed_as = VIDEOLLAMA2_UNPARSED_AS
        self.choice_rule, self.unparsed_as = choice_rule, unparsed_as

    def parse(self, answer: str, item: BenchmarkItem) -> int | None:
        """Return the index of the chosen option, None if the answer chooses none."""
        return parse_choice(answer, item.options, self.choice_rule)

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> list[BenchmarkMetric]:
        """Build the accuracy, with the groups of the items."""
        groups = list(dict.fromkeys(item.group for item in items if item.choice is not None))
        return [ChoiceAccuracy(groups if len(groups) > 1 else (), self.unparsed_as)]

    def describe(self) -> dict[str, Any]:
        """Return rule and option."""
        return {"choice_rule": self.choice_rule, "unparsed_as": self.unparsed_as}


class ServedBenchmark(ChoiceBenchmark):
    """A multiple-choice benchmark whose server computes the accuracy where answers are not public."""

    def check(self, items: Sequence[BenchmarkItem]) -> None:
        """Check that every question of a submission has the option that replaces answers without a choice.

        Raises:
            UserError: A question has fewer options.
        """
        few = next((item for item in items if self._option >= len(item.options)), None)
        if few is not None and _is_hidden(items):
            shown = f"unparsed_as is {self._option}, counted from 0"
            raise UserError(f"{shown}, but {few.id!r} has {len(few.options)} options")

    def write_submission(
        self, folder: Path, items: Sequence[BenchmarkItem], rows: Sequence[Mapping[str, Any]]
    ) -> Submission | None:
        """Write the file for the server if answers are not public; answers without a choice get an option too."""
        if not _is_hidden(items):
            return None
        chosen = [self._option if row.get("chosen") is None else int(row["chosen"]) for row in rows]
        path = self.write_choices(folder, items, chosen)
        return Submission(path, len(rows), sum(row.get("chosen") is None for row in rows), self._option)

    @abstractmethod
    def write_choices(self, folder: Path, items: Sequence[BenchmarkItem], chosen: Sequence[int]) -> Path:
        """Write the chosen option of each item in the server's form, and return the file."""

    @property
    def _option(self) -> int:
        return FALLBACK if self.unparsed_as is None else self.unparsed_as


def write_table(folder: Path, items: Sequence[BenchmarkItem], chosen: Sequence[int]) -> Path:
    """Write `submission.csv` for Kaggle and `submission.json` {q_uid: option} for EgoSchema's own server."""
    path = folder / "submission.csv"
    choices = {item.id: choice for item, choice in zip(items, chosen, strict=True)}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("q_uid", "answer"), *choices.items()])
    path.with_suffix(".json").write_text(json.dumps(choices), encoding="utf-8")
    return path


def _is_hidden(items: Sequence[BenchmarkItem]) -> bool:
    return any(item.choice is None for item in items)
