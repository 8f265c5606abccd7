"""Words of a prompt that the text tokenizer does not know, told to whoever asked: the model reads `<unk>` for them."""

import logging
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from divot_lightning.io.printing import printable
from divot_lightning.parts.segments import Segment, Text

logger = logging.getLogger(__name__)

MOST_NAMED = 20
"""Words that are named for one tokenizer; a tokenizer that does not know more does not fit the texts at all."""

_told: "WeakKeyDictionary[Any, set[str]]" = WeakKeyDictionary()


def unknown_words(text_tokenizer: Any, text: str) -> list[str]:
    """Return the words of a text that become the unknown token, each once, in order.

    Args:
        text_tokenizer: A transformers tokenizer. One that spells unknown words in pieces or bytes has none.
        text: Any text; where no word alone is unknown but the text holds something that is, the text itself.
    """
    unknown = text_tokenizer.unk_token_id

    def lacks(part: str) -> bool:
        return unknown in text_tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)

    if unknown is None or not lacks(text):
        return []
    return [word for word in dict.fromkeys(text.split()) if lacks(word)] or [text]


def warn_of_unknown_words(text_tokenizer: Any, prompts: Iterable[Iterable[Segment]]) -> None:
    """Warn of words in prompts that the tokenizer does not know, of each word once.

    Args:
        text_tokenizer: A transformers tokenizer.
        prompts: Samples; only their texts are looked at.
    """
    told = _told.setdefault(text_tokenizer, set())
    if len(told) > MOST_NAMED:
        return
    texts = dict.fromkeys(part.text for prompt in prompts for part in prompt if isinstance(part, Text))
    words = dict.fromkeys(word for text in texts for word in unknown_words(text_tokenizer, text))
    new = [word for word in words if word not in told]
    told.update(new)
    if new:
        named = ", ".join(repr(printable(word[:40])) for word in new[:MOST_NAMED])
        more = " and others, which are not named any more" if len(told) > MOST_NAMED else ""
        logger.warning(
            "the text tokenizer does not know %s%s; the model reads %s in their place.",
            named,
            more,
            text_tokenizer.unk_token,
        )
