"""The base class of tasks: what a sample teaches, as segments, and how its prompts are written.

No torch in here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from divot_lightning.errors import UserError
from divot_lightning.parts.part import Part
from divot_lightning.parts.segments import ANSWER, USER_TURN, Clips, Kind, Segment, Text

Template: TypeAlias = str
"""A name of `TEMPLATES`, or `CHAT`, or a text with one `{}` for the user's turn: "USER: {} ASSISTANT: "."""

CHAT = "chat"
"""The chat template that comes with the language model; see `divot_lightning.parts.sequences.chat_template`."""

TEMPLATES: dict[str, Template] = {"pretraining": "{}", "instruction": "[INST] {} [/INST]\n"}
"""Templates by name: bare, as in pretraining, and that of Divot's instructions (arXiv:2412.04432, appendix A.2)."""


class Task(Part, ABC):
    """Turns the texts and clips of a sample into segments, with marks for what is read and what is learned.

    `__init__` takes `template`, which the suite supplies by name, and the task's own settings, which a recipe gives.
    Phrases for prompts are such settings: texts with `{}` where something is filled in.

    Attributes:
        uses_one_clip: Declared by the class: whether `segments` is given one clip, a random one of the sample's, and
            not all clips in order.
        template: The template, with `{}`; or `CHAT`.
    """

    supplied_args: ClassVar[tuple[str, ...]] = ("template",)
    uses_one_clip: ClassVar[bool] = False

    def __init__(self, template: Template = "pretraining") -> None:
        """Check and store the template."""
        self.template = TEMPLATES.get(template, template)
        if self.template != CHAT and self.template.count("{}") != 1:
            raise UserError(
                f"template is {template!r}; choose one of {', '.join((*TEMPLATES, CHAT))}, or give a text with one "
                "{}, which stands for the user's turn"
            )

    @property
    def is_bare(self) -> bool:
        """Whether the template adds nothing to the user's turn, as in pretraining."""
        return self.template == "{}"

    @abstractmethod
    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments of a sample.

        Args:
            text: The sample's json, such as {"caption": "a dog runs"}; do not change it.
            rng: Makes all random choices, so that they are the same whenever the sample is read at the same position
                of the order.
            num_clips: Clips of the sample, at least 1; 1 if `uses_one_clip`.
            kind: Whether they are videos or images.

        Returns:
            The segments in order. Their `Clips` have `num_clips` clips together. Something is learned: a text with
            `learn`, or clips to generate.

        Raises:
            SampleError: The texts do not allow this task; the reason begins with "missing_". Another task of the
                mixture is tried; if there is none, the sample is skipped.
        """

    def user_turn(self, instruction: str, clips: Clips | None = None) -> list[Segment]:
        """Return the segments of a user's turn in the template: clips, if any, and an instruction about them."""
        if self.template == CHAT:
            begins, ends = (Text(mark, learn=False, special=True) for mark in (USER_TURN, ANSWER))
            words = [Text(instruction, learn=False)] if instruction else []
            return [begins, *([clips] if clips else []), *words, ends]
        begin, end = self.template.split("{}")
        if clips is None:
            return [Text(f"{begin}{instruction}{end}", learn=False)]
        if self.is_bare:
            return [clips, Text(instruction, learn=False)]
        return [*([Text(begin, learn=False)] if begin else []), clips, Text(f" {instruction}{end}", learn=False)]


def checked_phrases(setting: str, phrases: str | Sequence[str], num_fields: int) -> list[str]:
    """Return the phrases of a task's setting if each has the right number of `{}`.

    Args:
        setting: Name of the setting, for the message.
        phrases: The phrases, at least one; or a text file with one on each line, empty lines left out.
        num_fields: Number of `{}` in each.

    Raises:
        UserError: There is no phrase, or one has another number of `{}`.

    >>> checked_phrases("prompts", ["Show {} ."], num_fields=1)
    ['Show {} .']
    """
    if isinstance(phrases, str):
        phrases = phrases_of_file(setting, phrases)
    if not phrases:
        raise UserError(f"{setting} is {phrases!r}; it must be a list of at least one phrase")
    for phrase in phrases:
        if not isinstance(phrase, str) or phrase.count("{}") != num_fields:
            allowed = "one {}, where the text is filled in" if num_fields else "no {}, since nothing is filled in"
            raise UserError(f"{setting} has the phrase {phrase!r}; it must be a text with {allowed}")
    return list(phrases)


def phrases_of_file(setting: str, file: str) -> list[str]:
    """Return the lines of a text file that are not empty; arguments and errors as of `checked_phrases`."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{setting} is {file!r}, which cannot be read as a text file ({type(error).__name__})\n"
            "give a list of phrases, or a file with one phrase on each line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def pick_phrase(phrases: Sequence[str], rng: np.random.Generator, filling: str = "") -> str:
    """Pick a phrase and put a text in the place of its `{}`, if it has one; braces in the text stay as they are.

    >>> pick_phrase(["Show {} ."], np.random.default_rng(0), "a {}")
    'Show a {} .'
    """
    return phrases[int(rng.integers(len(phrases)))].replace("{}", filling)
