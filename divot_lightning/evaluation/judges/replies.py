"""Read a judge's reply: yes or no, and a score. No torch in here."""

import re
from dataclasses import dataclass

MAX_SCORE = 5.0


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict about an answer.

    Attributes:
        right: Whether the answer is right.
        score: How well the answer agrees with the right one, from 0 to 5; None if the reply has no score.
    """

    right: bool
    score: float | None = None


_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_PRED = re.compile(r"""\bpred['"]?\s*[:=]\s*['"]?(yes|no)\b""", re.IGNORECASE)
_SCORE = re.compile(r"""\bscore['"]?\s*[:=]\s*['"]?(\d+(?:\.\d+)?)(?![\d.]*\d)""", re.IGNORECASE)
_LAST_WORD = re.compile(r"\b(yes|no)\W*\Z", re.IGNORECASE)
_FIRST_WORD = re.compile(r"\A\W*(yes|no)\b(?=\s*(?:[.,;:!*)\n]|\Z))", re.IGNORECASE)
_STATED = re.compile(r"""\b(?:answer|verdict|judgment|judgement|reply)\b\W*(?:is\b)?\W*(yes|no)\b""", re.IGNORECASE)


def read_verdict(reply: str) -> Verdict | None:
    """Read a judge's reply; return None if it has no verdict.

    Text between `<think>` tags does not count. In the rest, the first of these is the verdict: the last `pred` of a
    dictionary; the last word, if it is yes or no; the first word, if punctuation or nothing follows it; the word after
    "answer is" and the like. "no" anywhere else is mostly no verdict ("there is no way to tell").

    >>> read_verdict("I have no video, but: {'pred': 'yes', 'score': 4}")
    Verdict(right=True, score=4.0)
    >>> read_verdict("No doubt: yes"), read_verdict("there is no way to tell")
    (Verdict(right=True, score=None), None)
    """
    text = _THOUGHT.sub(" ", reply).strip()
    if "</think>" in text:  # some servers leave out the opening tag
        text = text.rpartition("</think>")[2].strip()
    word = _verdict_word(text)
    return None if word is None else Verdict(word.lower() == "yes", _read_score(text))


def _verdict_word(text: str) -> str | None:
    if found := _PRED.findall(text):
        return str(found[-1])
    for pattern in (_LAST_WORD, _FIRST_WORD, _STATED):
        if match := pattern.search(text):
            return match[1]
    return None


def _read_score(text: str) -> float | None:
    found = [float(score) for score in _SCORE.findall(text)]
    return found[-1] if found and found[-1] <= MAX_SCORE else None
