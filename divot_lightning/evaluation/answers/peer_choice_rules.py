"""Read a choice as the evaluation code of VideoLLaMA 2 and of lmms-eval does, oddities included.

VideoLLaMA 2 (arXiv:2406.07476, github.com/DAMO-NLP-SG/VideoLLaMA2): "v1.0" is its code of 2024-07-09 to 2024-08-12,
"v1.5" the code since 2024-08-13. lmms-eval: its code of 2026-08. Each has one rule per benchmark.

Three things are not in this module. VideoLLaMA 2 counts an answer without a choice as the third option: that is
`unparsed_as`, which is 2 by default with its rules. lmms-eval chooses a random option for such an answer on EgoSchema;
here the answer is wrong, so that lmms-eval's accuracy is higher by a fifth of `unparsed` on average. lmms-eval leaves
empty answers out of MVBench's accuracy; here they are wrong.
"""

import re
from collections.abc import Callable, Sequence

from divot_lightning.evaluation.config import ChoiceRule

PeerRule = Callable[[str, Sequence[str]], int | None]

_LMMS_LETTERS = "ABCDE"


def _letters_of(options: Sequence[str]) -> str:
    return "".join(chr(ord("A") + index) for index in range(len(options)))


def _without_answer(answer: str) -> str:
    """Remove the word "answer", as v1.5 does, so that the A of "Answer: B" is not read."""
    return answer.replace("answer", "").replace("Answer", "")


def _first_match(pattern: str, answer: str, letters: str) -> tuple[bool, int | None]:
    """Return whether a pattern occurs; and its option, if the first match is one letter besides spaces and brackets."""
    found = re.search(pattern, answer)
    if found is None:
        return False, None
    letter = found[0].strip().strip("()")
    return True, letters.index(letter) if len(letter) == 1 else None


def _mvbench_letter(answer: str, options: Sequence[str]) -> tuple[bool, int | None]:
    # A comma around the letter is matched but not taken off, so that "B, a red car" is read as no option.
    letters = _letters_of(options)
    return _first_match(rf"[(, ]*[{letters}][), ]*", answer, letters)


def _videollama2_mvbench_1_0(answer: str, options: Sequence[str]) -> int | None:
    return _mvbench_letter(answer, options)[1]


def _videollama2_mvbench_1_5(answer: str, options: Sequence[str]) -> int | None:
    answer = _without_answer(answer)
    lettered, choice = _mvbench_letter(answer, options)
    if lettered:
        return choice
    return next((index for index, text in enumerate(options) if text.lower() in answer.lower()), None)


def _videollama2_egoschema_1_0(answer: str, options: Sequence[str]) -> int | None:
    return _first_match(r"[( ]*[A-E][) ]*", answer, "ABCDE")[1]


def _videollama2_egoschema_1_5(answer: str, options: Sequence[str]) -> int | None:
    return _videollama2_egoschema_1_0(_without_answer(answer), options)


def _videollama2_perception_test_1_0(answer: str, options: Sequence[str]) -> int | None:
    lettered, choice = _first_match(r"\(*[A-C]\)*", answer, "ABC")
    if lettered:
        return choice
    return next((index for index, text in enumerate(options) if text.lower() == answer.lower()), None)


def _videollama2_perception_test_1_5(answer: str, options: Sequence[str]) -> int | None:
    return _videollama2_perception_test_1_0(_without_answer(answer), options)


def _lmms_eval_mvbench(answer: str, options: Sequence[str]) -> int | None:
    """Read "B. text", else the first letter A to E that stands alone in any case, the article "a" included."""
    leading = re.match(r"([A-E])\.\s*.+$", answer.strip(), re.IGNORECASE)
    letter = leading or re.search(r"\b([A-E])\b", _lmms_eval_words(answer), re.IGNORECASE)
    return _index_within(letter[1].upper() if letter else "", options)


def _lmms_eval_words(answer: str) -> str:
    """Return an answer without punctuation: a sign that occurs next to a space is removed, any other made a space."""
    text = re.sub(r"[\n\t]", " ", answer).strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    kept = text
    for sign in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = f"{sign} " in text or f" {sign}" in text
        kept = kept.replace(sign, "" if beside_space or has_thousands else " ")
    return re.sub(r"\.(?!\d)", "", kept, count=32).strip("'\"() ")


def _lmms_eval_egoschema(answer: str, options: Sequence[str]) -> int | None:
    """Read letters as "(B)", "B " and "B."; of several, the one whose last occurrence comes first."""
    for sign in ",.!?;:'":
        answer = answer.strip(sign)
    answer = f" {answer} "
    forms = [form for ends in ("({})", "{} ", "{}.") for form in map(ends.format, _LMMS_LETTERS) if form in answer]
    if forms:
        return _index_within(min(forms, key=answer.rfind).strip("(). "), options)
    if len(answer.split()) <= 5:
        return None
    # In lmms-eval's files an option's text begins with its letter.
    texts = [f"{letter}. {text}".lower() for letter, text in zip(_LMMS_LETTERS, options, strict=False)]
    found = [index for index, text in enumerate(texts) if text in answer.lower()]
    return min(found, key=lambda index: answer.lower().rfind(texts[index])) if found else None


def _lmms_eval_perception_test(answer: str, options: Sequence[str]) -> int | None:
    found = re.search(r"\b([A-D])\b", answer)
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
"""Rules by name; a rule returns the index of the option, None if the peer's code finds none."""
