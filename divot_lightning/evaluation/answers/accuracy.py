"""Read which option an answer chooses, decide whether an open answer is right, and average both."""

import re
import string
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from divot_lightning.errors import UserError
from divot_lightning.evaluation.answers.choice_reading import read_choice
from divot_lightning.evaluation.answers.peer_choice_rules import PEER_RULES
from divot_lightning.evaluation.answers.text_match import normalise_answer
from divot_lightning.evaluation.config import ChoiceRule

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


class ChoiceAccuracy(Metric):
    """Fraction of multiple-choice questions answered correctly: over all, per group, and the mean of the groups.

    Args:
        groups: Names of the groups, such as MVBench's tasks; each counts the same in the mean of groups.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    right: Tensor
    total: Tensor
    unparsed: Tensor

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(groups)
        for name in ("right", "total"):
            self.add_state(name, torch.zeros(1 + len(groups), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("unparsed", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, chosen: Sequence[int | None], correct: Sequence[int], groups: Sequence[str] = ()) -> None:
        """Add questions.

        Args:
            chosen: The option that each answer chooses, None if it chooses none, which is wrong.
            correct: The right options.
            groups: The group of each question, if there are any.
        """
        if self.groups and len(groups) != len(chosen):
            raise UserError(f"{len(chosen)} answers were given with {len(groups)} groups; give one for each")
        for index, (choice, target) in enumerate(zip(chosen, correct, strict=True)):
            counters = [0, 1 + self.groups.index(groups[index])] if self.groups else [0]
            self.right[counters] += choice == target
            self.total[counters] += 1
            self.unparsed += choice is None

    def compute(self) -> dict[str, Tensor]:
        """Return fractions in [0, 1]: `all`, `unparsed`, each group, and `mean_of_groups` if there are groups."""
        fractions = self.right / self.total
        named = dict(zip(("all", *self.groups), fractions, strict=True))
        if self.groups:
            named["mean_of_groups"] = fractions[1:][self.total[1:] > 0].mean()
        return {**named, "unparsed": self.unparsed / self.total[0]}


class OpenAnswerAccuracy(Metric):
    """Fraction of open answers that are right: `exact`, after normalisation (`normalised`), and `judged` by a judge.

    `judged` is the fraction of the judged answers; answers without a verdict are left out of it.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(5, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, answers: Sequence[str], correct: Sequence[str], verdicts: Sequence[bool | None] | None = None
    ) -> None:
        """Add answers, the right ones, and a judge's verdict about each, None for no verdict."""
        judged = verdicts if verdicts is not None else [None] * len(answers)
        for answer, target, verdict in zip(answers, correct, judged, strict=True):
            exact, same = compare_answers(answer, target)
            row = [exact, same, verdict is True, verdict is not None, True]
            self.counts += torch.tensor(row, device=self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Return fractions in [0, 1], NaN of no answers."""
        exact, same, yes, judged, total = self.counts
        return {"exact": exact / total, "normalised": same / total, "judged": yes / judged}
