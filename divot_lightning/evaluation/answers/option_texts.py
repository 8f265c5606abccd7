"""Find the full texts of options in an answer."""

import re
from collections.abc import Sequence
from functools import lru_cache

from divot_lightning.evaluation.answers import choice_patterns as patterns
from divot_lightning.evaluation.answers.text_match import spelt_words


def letter_index(letter: str) -> int:
    """Return the index of a letter in the alphabet, 0 for "A" and "a"; outside 0 to 25 for any other character."""
    # A capital may be several characters, as that of the German sharp s; then it is no letter of an option either.
    return ord(letter.upper()) - ord("A") if len(letter.upper()) == 1 else -1


def text_key(text: str) -> str:
    """Return a text's lower-case words without an article at its beginning.

    >>> text_key("A red car."), text_key("a -> b -> c")
    ('red car', 'a b c')
    """
    return " ".join(spelt_words(re.sub(r"^\W*(?:an?|the)\s+(?=\w\w)", "", text, flags=re.IGNORECASE)))


def mask_options(text: str, options: Sequence[str]) -> str:
    """Replace the full text of each option by its mark, the longest text first.

    A text that several options have gets `SHARED_MARK`. An option's text that is also the letter of an option is not
    replaced.

    Args:
        text: Result of `clean_answer`.
        options: The options, (A) first; less than 63.

    >>> [hex(ord(char)) for char in mask_options("B. A red  car", ["a dog", "a red car"]) if ord(char) > 127]
    ['0xe001']
    """
    keys = [text_key(option) for option in options]
    for index in sorted(range(len(options)), key=lambda index: -len(keys[index])):
        key = keys[index]
        if not key or (len(key) == 1 and 0 <= letter_index(key) < len(options)):
            continue
        mark = patterns.option_mark(index) if keys.count(key) == 1 else patterns.SHARED_MARK
        text = _option_pattern(key).sub(f" {mark} ", text)
    return text


@lru_cache(maxsize=4096)
def _option_pattern(key: str) -> re.Pattern[str]:
    """Return a pattern of an option's words in any case, with any punctuation, with or without an article before."""
    spelt = r"[\W_]+".join(_either_spelling(word) for word in key.split())
    article = r"(?:(?:an?|the)\s+)?" if re.match(r"\w\w", key) else ""
    return re.compile(rf"(?<![\w']){article}{spelt}(?!'?\w)", re.IGNORECASE)


def _either_spelling(word: str) -> str:
    digit = str(patterns.NUMBERS.index(word) + 1) if word in patterns.NUMBERS else word
    known = digit.isdecimal() and 0 < int(digit) <= len(patterns.NUMBERS)
    return rf"(?:{digit}|{patterns.NUMBERS[int(digit) - 1]})" if known else re.escape(word)


def drop_list_of_options(masked: str) -> str:
    """Remove a repetition of the question's list of options, "A. a dog B. a red car", which chooses nothing.

    Args:
        masked: Result of `mask_options`.
    """
    pair = re.compile(rf"(?<![\w']){patterns.OPENING}([A-Za-z]){patterns.CLOSING}[.):,]*\s*({patterns.MARKS})")
    own = {match[2] for match in pair.finditer(masked) if letter_index(match[1]) == ord(match[2]) - patterns.MARK_BASE}
    return pair.sub(" ", masked) if len(own) > 1 else masked
