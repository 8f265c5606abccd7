"""Warn of words in a prompt that the text tokenizer does not know: the model reads `<unk>` in their place."""

import logging
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from divot_lightning.io.printing import printable
from divot_lightning.parts.segments import Segment, Text

logger = logging.getLogger(__name__)

MOST_NAMED = 20
"""Most words that are named for one tokenizer; one that lacks more does not fit the texts at all."""

_warned: "WeakKeyDictionary[Any, set[str]]" = WeakKeyDictionary()


def unknown_words(text_tokenizer: Any, text: str) -> list[str]:
    """Return the words of a text that become the unknown token, each once, in order.

    Args:
        text_tokenizer: A transformers tokenizer. One that spells words in pieces or bytes has no unknown words.
        text: Any text. If it holds something unknown but no single word is unknown, the whole text is returned.
    """
    unknown = text_tokenizer.unk_token_id

    def lacks(part: str) -> bool:
        return unknown in text_tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)

    if unknown is None or not lacks(text):
        return []
    return [word for word in dict.fromkeys(text.split()) if lacks(word)] or [text]


def warn_of_unknown_words(text_tokenizer: Any, prompts: Iterable[Iterable[Segment]]) -> None:
    """Log a warning about words in prompts that the tokenizer does not know, once for each word.

    Args:
        text_tokenizer: A transformers tokenizer.
        prompts: Samples; only their texts are looked at.
    """
    warned = _warned.setdefault(text_tokenizer, set())
    if len(warned) > MOST_NAMED:
        return
    texts = dict.fromkeys(
        part.text for prompt in prompts for part in prompt if isinstance(part, Text) and not part.special
    )
    words = dict.fromkeys(word for text in texts for word in unknown_words(text_tokenizer, text))
    new = [word for word in words if word not in warned]
    warned.update(new)
    if new:
        named = ", ".join(repr(printable(word[:40])) for word in new[:MOST_NAMED])
        more = " and others, which are not named any more" if len(warned) > MOST_NAMED else ""
        logger.warning(
            "the text tokenizer does not know %s%s; the model reads %s in their place.",
            named,
            more,
            text_tokenizer.unk_token,
        )
