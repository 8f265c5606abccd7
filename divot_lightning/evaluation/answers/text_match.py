"""Compare the words of answers and of captions."""

import re
from typing import Any, ClassVar, Literal

from divot_datamodules.toy.world import ATTRIBUTES, parse_caption
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import ItemMetric


def normalise_text(text: str) -> str:
    """Return a text in lower case with single spaces, so that only the words count.

    >>> normalise_text("  Upper   left ")
    'upper left'
    """
    return " ".join(text.lower().split())


_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}


def spelt_words(text: str) -> list[str]:
    """Return the lower-case words of a text, without punctuation.

    >>> spelt_words("A man's t-shirt.")
    ['a', 'man', 's', 't', 'shirt']
    """
    return re.sub(r"[^\w]|_", " ", text.lower()).split()


def normalise_answer(text: str) -> str:
    """Return an answer without case, punctuation, articles and spelt-out numbers up to ten.

    Only an empty answer becomes empty: articles or punctuation are kept if there is nothing else.

    >>> normalise_answer("The  Two dogs!"), normalise_answer("A")
    ('2 dogs', 'a')
    """
    words = spelt_words(text)
    kept = [_NUMBERS.get(word, word) for word in words if word not in _ARTICLES] or words
    return " ".join(kept) or text.strip()


class ToyCaptionAccuracy(ItemMetric):
    """Fraction of captions that are `exact`, that name each attribute correctly, and that are `invalid`.

    A caption that does not parse as a caption of the toy world is invalid and wrong in every attribute.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "answers"
    scores: ClassVar[tuple[str, ...]] = (*ATTRIBUTES, "exact", "invalid")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Compare a caption with the first reference."""
        text, correct = normalise_text(prediction.answer), normalise_text(item.references[0])
        found, truth = parse_caption(text), parse_caption(correct)
        right = {name: found is not None and truth is not None and found[name] == truth[name] for name in ATTRIBUTES}
        return {**right, "exact": text == correct, "invalid": found is None}
