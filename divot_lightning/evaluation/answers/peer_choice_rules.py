"""The rules by which the evaluation code of VideoLLaMA 2 and lmms-eval reads a choice, their oddities included.

VideoLLaMA 2 (arXiv:2406.07476, github.com/DAMO-NLP-SG/VideoLLaMA2): "v1.0" is its code of 2024-07-09 to 2024-08-12,
"v1.5" that since 2024-08-13. lmms-eval: its code of 2026-08. Each has one rule per benchmark.

Three things are not in here. VideoLLaMA 2 counts an answer without a choice as its third option: `unparsed_as`, which
is 2 by default with its rules. lmms-eval draws an option at random for such an answer about EgoSchema; here it is
wrong, so that theirs is higher by a fifth of the `unparsed` share on average. And it leaves empty answers out of
MVBench's accuracy; here they are wrong.
"""

import re
from collections.abc import Callable, Sequence

from divot_lightning.evaluation.config import ChoiceRule

PeerRule = Callable[[str, Sequence[str]], int | None]

_LMMS_LETTERS = "ABCDE"


def _letters_of(options: Sequence[str]) -> str:
    return "".join(chr(ord("A") + index) for index in range(len(options)))


def _without_answer(said: str) -> str:
    """Remove the word "answer", as v1.5 does, so that the A of "Answer: B" is not read."""
    return said.replace("answer", "").replace("Answer", "")


def _first_match(pattern: str, said: str, letters: str) -> tuple[bool, int | None]:
    """Return whether a pattern occurs, and the option if its first match is one letter but for spaces and brackets."""
    found = re.search(pattern, said)
    if found is None:
        return False, None
    letter = found[0].strip().strip("()")
    return True, letters.index(letter) if len(letter) == 1 else None


def _mvbench_letter(said: str, options: Sequence[str]) -> tuple[bool, int | None]:
    # A comma around the letter is matched but not taken off, so that "B, a red car" is read as no option.
    letters = _letters_of(options)
    return _first_match(rf"[(, ]*[{letters}][), ]*", said, letters)


def _videollama2_mvbench_1_0(said: str, options: Sequence[str]) -> int | None:
    return _mvbench_letter(said, options)[1]


def _videollama2_mvbench_1_5(said: str, options: Sequence[str]) -> int | None:
    said = _without_answer(said)
    lettered, choice = _mvbench_letter(said, options)
    if lettered:
        return choice
    return next((index for index, text in enumerate(options) if text.lower() in said.lower()), None)


def _videollama2_egoschema_1_0(said: str, options: Sequence[str]) -> int | None:
    return _first_match(r"[( ]*[A-E][) ]*", said, "ABCDE")[1]


def _videollama2_egoschema_1_5(said: str, options: Sequence[str]) -> int | None:
    return _videollama2_egoschema_1_0(_without_answer(said), options)


def _videollama2_perception_test_1_0(said: str, options: Sequence[str]) -> int | None:
    lettered, choice = _first_match(r"\(*[A-C]\)*", said, "ABC")
    if lettered:
        return choice
    return next((index for index, text in enumerate(options) if text.lower() == said.lower()), None)


def _videollama2_perception_test_1_5(said: str, options: Sequence[str]) -> int | None:
    return _videollama2_perception_test_1_0(_without_answer(said), options)


def _lmms_eval_mvbench(said: str, options: Sequence[str]) -> int | None:
    """Read "B. text", else the first letter A to E that stands alone in any case, the article "a" included."""
    leading = re.match(r"([A-E])\.\s*.+$", said.strip(), re.IGNORECASE)
    letter = leading or re.search(r"\b([A-E])\b", _lmms_eval_words(said), re.IGNORECASE)
    return _index_within(letter[1].upper() if letter else "", options)


def _lmms_eval_words(said: str) -> str:
    """Return an answer without punctuation; what stands beside a space anywhere is removed, the rest made a space."""
    text = re.sub(r"[\n\t]", " ", said).strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    kept = text
    for sign in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = f"{sign} " in text or f" {sign}" in text
        kept = kept.replace(sign, "" if beside_space or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", kept, count=32).strip("'\"() ")


def _lmms_eval_egoschema(said: str, options: Sequence[str]) -> int | None:
    """Read letters as "(B)", "B " and "B."; of several, the one whose last occurrence comes first."""
    for sign in ",.!?;:'":
        said = said.strip(sign)
    said = f" {said} "
    forms = [form for ends in ("({})", "{} ", "{}.") for form in map(ends.format, _LMMS_LETTERS) if form in said]
    if forms:
        return _index_within(min(forms, key=said.rfind).strip("(). "), options)
    if len(said.split()) <= 5:
        return None
    # In lmms-eval's files an option's text begins with its letter.
    texts = [f"{letter}. {text}".lower() for letter, text in zip(_LMMS_LETTERS, options, strict=False)]
    found = [index for index, text in enumerate(texts) if text in said.lower()]
    return min(found, key=lambda index: said.lower().rfind(texts[index])) if found else None


def _lmms_eval_perception_test(said: str, options: Sequence[str]) -> int | None:
    found = re.search(r"\b([A-D])\b", said)
    return _index_within(found[1] if found else "", options)


def _index_within(letter: str, options: Sequence[str]) -> int | None:
    letters = _letters_of(options)
    return letters.index(letter) if letter and letter in letters else None


PEER_RULES: dict[ChoiceRule, PeerRule] = {
    "videollama2_v1.0_mvbench": _videollama2_mvbench_1_0,
    "videollama2_v1.0_egoschema": _videollama2_egoschema_1_0,
    "videollama2_v1.0_perception_test": _videollama2_perception_test_1_0,
    "videollama2_v1.5_mvbench": _videollama2_mvbench_1_5,
    "videollama2_v1.5_egoschema": _videollama2_egoschema_1_5,
    "videollama2_v1.5_perception_test": _videollama2_perception_test_1_5,
    "lmms_eval_mvbench": _lmms_eval_mvbench,
    "lmms_eval_egoschema": _lmms_eval_egoschema,
    "lmms_eval_perception_test": _lmms_eval_perception_test,
}
"""Reads an answer by the name of the rule; None where the peer's code finds no option."""
