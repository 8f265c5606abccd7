"""The chat template that comes with a language model, as the texts around user's turns and answers.

Tasks with the template "chat" mark where a user's turn begins and ends (`USER_TURN`, `ANSWER`). Only the text tokenizer
knows what stands there. It is the only text in which special tokens count as such: words of the data that look like
`<|im_end|>` stay words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import ANSWER, USER_TURN, Segment, Text

_FIRST, _REPLY, _SECOND = "divot-first-question", "divot-reply", "divot-second-question"
_SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Settings of common templates: answers without a chain of thought, as the data have them (Qwen 3), and a date that is
not today's, so that a resumed run has the same prompts (Llama 3.1's own default)."""


@dataclass(frozen=True)
class ChatTemplate:
    """The texts around turns.

    Attributes:
        begin: Before the first user's turn, without the token that begins every sequence.
        answer: After a user's turn; the answer follows.
        answer_end: The token that ends an answer, which is learned; "" if it is the end token of the text tokenizer.
        next_turn: Between the end of an answer and the next user's turn.
    """

    begin: str
    answer: str
    answer_end: str
    next_turn: str

    def fill(self, segments: Iterable[Segment], *, prompt: bool) -> list[Segment]:
        """Put the texts in the place of the marks.

        Args:
            segments: A sample.
            prompt: Whether something is to follow the last segment, so that it has no end.
        """
        filled: list[Segment] = []
        closing = Text(self.answer_end, learn=True, special=True)
        for segment in segments:
            if not isinstance(segment, Text):
                filled.append(segment)
            elif segment.special:
                turn = self.next_turn if filled else self.begin
                filled.append(replace(segment, text={USER_TURN: turn, ANSWER: self.answer}[segment.text]))
            elif segment.ends and self.answer_end:
                filled += [replace(segment, ends=False), replace(closing, learn=segment.learn)]
            else:
                filled.append(segment)
        ends_with_answer = bool(filled) and isinstance(filled[-1], Text) and filled[-1].learn
        return [*filled, closing] if self.answer_end and ends_with_answer and not prompt else filled


@lru_cache(maxsize=4)
def read_chat_template(text_tokenizer: Any) -> ChatTemplate:
    """Read the template of a text tokenizer by rendering a conversation of two questions.

    Args:
        text_tokenizer: A transformers tokenizer.

    Raises:
        UserError: It has no chat template, or one that does not write a conversation.
    """
    if not text_tokenizer.chat_template:
        raise UserError(
            f"template is chat, but the text tokenizer {text_tokenizer.name_or_path!r} has no chat template.\n"
            "Choose a language model that was tuned to instructions, or data.template=instruction."
        )
    begin, _, between, answer = _render(text_tokenizer)
    answer_end, next_turn = _split_end(between, text_tokenizer)
    return ChatTemplate(begin.removeprefix(text_tokenizer.bos_token or ""), answer, answer_end, next_turn)


def fill_chat_template(segments: list[Segment], text_tokenizer: Any, *, prompt: bool = False) -> list[Segment]:
    """Put the text tokenizer's chat template into a sample, if the sample has the marks of one.

    Args:
        segments: A sample.
        text_tokenizer: A transformers tokenizer.
        prompt: See `ChatTemplate.fill`.

    Raises:
        UserError: The sample has marks, and the text tokenizer has no chat template.
    """
    if not any(isinstance(segment, Text) and segment.special for segment in segments):
        return segments
    return read_chat_template(text_tokenizer).fill(segments, prompt=prompt)


def _render(text_tokenizer: Any) -> list[str]:
    """Return the texts before the first question, before the reply, before the second question, and after it."""
    turns = [("user", _FIRST), ("assistant", _REPLY), ("user", _SECOND)]
    messages = [{"role": role, "content": content} for role, content in turns]
    reason = "it changes or leaves out what is said"
    rest, parts = "", list[str]()
    try:
        rest = str(
            text_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_SETTINGS)
        )
    except Exception as error:  # a template is a program; it may raise whatever it likes
        reason = f"{type(error).__name__}: {str(error)[:150]}"
    for _, content in turns:
        part, found, rest = rest.partition(content)
        parts += [part] if found else []
    if len(parts) < len(turns):
        raise UserError(
            f"The chat template of {text_tokenizer.name_or_path!r} does not write a conversation: {reason}.\n"
            "Set data.template to instruction, or to a text of your own with {}."
        )
    return [*parts, rest]


def _split_end(between: str, text_tokenizer: Any) -> tuple[str, str]:
    """Split the text between an answer and the next turn after the special token that ends the answer, if any."""
    special = {*text_tokenizer.all_special_tokens, *text_tokenizer.get_added_vocab()}
    text = between.lstrip()
    end = max((token for token in special if text.startswith(token)), key=len, default="")
    return ("" if end == text_tokenizer.eos_token else end), text.removeprefix(end) if end else between
