"""Read which option an answer chooses, decide whether an open answer is right, and average both."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from divot_lightning.evaluation.answers.choice_reading import read_choice
from divot_lightning.evaluation.answers.peer_choice_rules import PEER_RULES
from divot_lightning.evaluation.answers.text_match import normalise_answer
from divot_lightning.evaluation.config import ChoiceRule
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import BenchmarkMetric, Measured

LETTERS = string.ascii_uppercase


def parse_choice(answer: str, options: Sequence[str], rule: ChoiceRule = "letter_or_text") -> int | None:
    """Return which option an answer chooses.

    Args:
        answer: The model's answer.
        options: The options, (A) being the first.
        rule: "letter_or_text" reads as a person would, see `read_choice`. "first_letter" takes the first capital letter
            of an option anywhere, even within a word. The others are in `peer_choice_rules`.

    Returns:
        The index of the option, None if the answer chooses none.

    >>> parse_choice("Option B is correct.", ["a cat", "a red car"])
    1
    >>> parse_choice("It is a red car.", ["a cat", "a red car"])
    1
    >>> parse_choice("Answer: B", ["a cat", "a red car"], "first_letter")
    0
    """
    if rule == "letter_or_text":
        return read_choice(answer, options)
    if rule == "first_letter":
        letters = LETTERS[: len(options)]
        found = re.search(f"[{letters}]", answer)
        return letters.index(found[0]) if found else None
    return PEER_RULES[rule](answer, options)


def compare_answers(answer: str, correct: str) -> tuple[bool, bool]:
    """Return whether an open answer is right exactly, and after `normalise_answer`; an empty one never is.

    >>> compare_answers("A dog.", "dog"), compare_answers("a", "a"), compare_answers("", "")
    ((False, True), (True, True), (False, False))
    """
    if not answer.strip():
        return False, False
    return answer.strip() == correct.strip(), normalise_answer(answer) == normalise_answer(correct)


class ChoiceAccuracy(BenchmarkMetric):
    """Fraction of multiple-choice questions answered correctly: over all, per group, and the mean of the groups.

    Questions whose right option is not public have no accuracy. `unparsed` is the fraction of answers that chose no
    option; a video that could not be read has no answer, and counts as wrong.

    Args:
        groups: Names of the groups, such as MVBench's tasks; each counts the same in the mean of groups.
        unparsed_as: Index of the option that an answer without a choice counts as; None counts it as wrong.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "answers"
    right: Tensor
    total: Tensor
    unparsed: Tensor

    def __init__(self, groups: Sequence[str] = (), unparsed_as: int | None = None) -> None:
        super().__init__()
        self.groups, self.unparsed_as = tuple(groups), unparsed_as
        for name in ("right", "total"):
            self.add_state(name, torch.zeros(1 + len(self.groups), dtype=torch.int64), dist_reduce_fx="sum")
        # Answers without a choice and all answers, to questions with a known and with a hidden right option.
        self.add_state("unparsed", torch.zeros(2, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return the chosen option."""
        return {"chosen": prediction.parsed}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add questions."""
        for entry, item in zip(measured, items, strict=True):
            is_unparsed = entry["chosen"] is None and "error" not in entry
            self.unparsed[int(item.choice is None)] += torch.tensor([int(is_unparsed), 1], device=self.right.device)
            if item.choice is not None:
                counters = [0, 1 + self.groups.index(item.group)] if self.groups else [0]
                self.right[counters] += self._is_right(entry, item)
                self.total[counters] += 1

    def _is_right(self, entry: Measured, item: BenchmarkItem) -> bool:
        is_unparsed = entry["chosen"] is None and "error" not in entry
        return (self.unparsed_as if is_unparsed else entry["chosen"]) == item.choice

    def compute(self) -> dict[str, Tensor]:
        """Return fractions in [0, 1]: `all`, each group, `mean_of_groups` if there are groups, and `unparsed`."""
        named: dict[str, Tensor] = {}
        if self.total[0]:
            fractions = self.right.double() / self.total
            named = dict(zip(("all", *self.groups), fractions, strict=True))
            if self.groups:
                named["mean_of_groups"] = fractions[1:][self.total[1:] > 0].mean()
        count, total = self.unparsed[0] if self.total[0] else self.unparsed[1]
        return {**named, "unparsed": count.double() / total}

    def counts(self) -> dict[str, int]:
        """Return the numbers of questions."""
        known = int(self.total[0])
        groups = dict(zip(self.groups, self.total[1:].tolist(), strict=True))
        return {**groups, **(dict.fromkeys(("all", "mean_of_groups", "unparsed"), known) if known else {})}

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return for each question whether it is right; hidden ones have no value."""
        sizes = Counter(item.group for item in items if item.choice is not None)
        rows: list[dict[str, float]] = []
        for entry, item in zip(measured, items, strict=True):
            right = float(self._is_right(entry, item))
            rows.append({} if item.choice is None else {"all": right})
            if self.groups and item.choice is not None:
                # Weighted so that the mean over all items is the mean of the groups' means: items can then be paired.
                weight = sizes.total() / (len(sizes) * sizes[item.group])
                rows[-1] |= {item.group: right, "mean_of_groups": right * weight}
        return rows


class OpenAnswerAccuracy(BenchmarkMetric):
    """Fraction of open answers that are right: `exact`, and after normalisation (`normalised`, also for each group).

    Args:
        groups: Names of the groups, such as types of answers.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "answers"
    right: Tensor
    total: Tensor

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = ("exact", "normalised", *(f"normalised/{group}" for group in groups))
        for name in ("right", "total"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return whether the answer is right, exactly and after normalisation."""
        exact, normalised = compare_answers(prediction.answer, str(item.answer))
        return {"exact": exact, "normalised": normalised}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add answers."""
        for values in self.item_values(measured, items):
            for name, value in values.items():
                self.right[self.names.index(name)] += int(value)
                self.total[self.names.index(name)] += 1

    def compute(self) -> dict[str, Tensor]:
        """Return fractions in [0, 1], NaN of no answers."""
        return dict(zip(self.names, self.right.double() / self.total, strict=True))

    def counts(self) -> dict[str, int]:
        """Return the numbers of answers."""
        return dict(zip(self.names, self.total.tolist(), strict=True))

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return for each answer whether it is right."""
        rows = []
        for entry, item in zip(measured, items, strict=True):
            row = {name: float(entry[name]) for name in ("exact", "normalised")}
            rows.append({**row, **({f"normalised/{item.group}": row["normalised"]} if item.group else {})})
        return rows
