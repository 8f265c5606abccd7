"""Patterns of how answers to multiple-choice questions are worded, for `choice_reading`.

All patterns are for text in which the full text of an option is replaced by one private character, see `option_mark`.
"""

import re

MARK_BASE = 0xE000
MARKS = f"[{chr(MARK_BASE)}-{chr(MARK_BASE + 63)}]"
"""Matches the character that stands for an option's full text."""

SHARED_MARK = chr(MARK_BASE + 63)
"""Replaces a text that several options have, which therefore chooses none of them."""

OPENING, CLOSING = r"[\s(\[{<\"'`]*", r"[)\]}>\"'`]*"

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_ADVERBS = "likely|probably|most|clearly|definitely|obviously|therefore|thus|then|indeed|simply|actually|certainly"
_FILLERS = (
    rf"(?:{_ADVERBS}|perhaps|maybe|surely|just|still|also|so|be|to|as|the|option|choice|letter|answer|alternative)"
)
_FILL = rf"[\s:\"'*(\[#]*(?:\b{_FILLERS}\b[\s:\"'*(\[#,]*)*$"

_ANSWER = "an(?:swers?|s)"
_KEYS = rf"{_ANSWER}|correct|option|choice|selection|response|solution|pick|guess|conclusion|result|verdict|prediction"
_KEYS_OF_TEXT = "one|best|description|statement|explanation|summary|interpretation|match"
_IS = "(?:is|are|was|be|becomes)"
_VERBS = "choose|choosing|chose|pick|select|selected|selecting|go(?:es|ing)? with|say|opt for|settle on|vote for"

STATED_BEFORE = re.compile(
    rf"(?:\b(?:{_KEYS})\b(?:\s+[\w']+){{0,8}}?[\s\"'*)]*(?:\b{_IS}\b|[:=]|[-=]?>|\s-)"
    rf"|\b(?:{_KEYS_OF_TEXT})\b(?:\s+[\w']+){{0,8}}?\s+{_IS}\b"
    rf"|\b{_ANSWER}\b\.?|\b(?:so|therefore|thus|hence)\b,?"
    rf"|\b(?:{_VERBS}|lean(?:ing)? towards?)\b"
    rf"|\b(?:it|this|that)(?:'s|\s+(?:is|must be|should be|would be|has to be))(?=\W)){_FILL}",
    re.IGNORECASE,
)
"""Ends right before a choice that is stated as the answer: "the answer is", "Answer:", "I choose", "it must be"."""

_FITS = "describes?|fits?|matches|explains?|captures?|summari[sz]es?|represents?|reflects?|answers?"
_SEEMS = r"(?:is|was|are|seems?(?: to be)?|appears? to be|looks|would be|must be|should be|has to be)"
STATED_AFTER = re.compile(
    rf"{CLOSING}\s*(?:{_SEEMS}\s+(?:\w+ly\s+)*(?:(?:the|my|an?|most)\s+)?(?:\w+\s+){{0,2}}?"
    r"(?:correct|right|answer|best|true|accurate|option|choice|one|it)\b"
    rf"|(?:best|most accurately|most closely|correctly|accurately)\s+(?:{_FITS})\b)",
    re.IGNORECASE,
)
"""Begins right after a choice that is called right: "is correct", "seems to be the best answer", "best describes"."""

FITS_AFTER = re.compile(rf"{CLOSING}\s*(?:\w+ly\s+)?(?:{_FITS})\b", re.IGNORECASE)
"""As `STATED_AFTER`, for verbs that can also describe a person in the video: "matches the colours"."""

NAMED_BEFORE = re.compile(rf"\b(?:options?|choices?|letters?|alternatives?){OPENING}[:#]?{OPENING}$", re.IGNORECASE)

_VERBS_AFTER = "is|was|are|were|be|seems?|looks|appears|would|could|should|must|may|might|can|will|has|had|does|did"
JOINING = "because|since|as|for|and|or|but|not|rather|instead|while|given|due|based|over|than|if|when|where|which"
FOLLOWING = re.compile(
    rf"(?:{JOINING}|{_VERBS_AFTER}|{_ADVERBS}|that|in|on|of|from|with|by|to|here|best|correctly|accurately"
    rf"|{_FITS}|shows?|too|isn't|it|he|she|they|the|there|this|an?|[A-Z])\b"
)
"""Words that can follow a letter but not the article "A"; the same for every letter, so that none is favoured."""

FOLLOWING_NAME = re.compile(rf"(?:{JOINING})\b")
"""As `FOLLOWING`, for a letter that is also a name in the options, as EgoSchema's camera wearer "C" is."""

NEGATED_BEFORE = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|none|without|except|excluding|unlike|cannot|rather than|instead of|other than"
    r"|as opposed to|eliminat\w+|rul(?:e|es|ed|ing) out|exclud\w+|reject\w*|discard\w*|dismiss\w*"
    r"|incorrect|wrong|false)\b|n't\b)",
    re.IGNORECASE,
)
NEGATED_AFTER = re.compile(
    rf"{CLOSING},?\s*(?:(?:(?:is|are|was|were|seems?|looks?|appears?)\s+)(?:\w+ly\s+|both\s+|all\s+)?(?:to be\s+)?"
    r"(?:not|neither|wrong|incorrect|false|out|unlikely|impossible|implausible|eliminated|excluded|ruled out)\b"
    r"|(?:is|are|was|were|does|do|did|can|could|would|should|has|have)(?:n't|\s+not)\b|cannot\b|can't\b|won't\b"
    r"|\s*[:-]\s*(?:no|wrong|incorrect|false|not correct)\s*(?:[.,;\n)]|$))",
    re.IGNORECASE,
)
NO_NEGATION = re.compile(
    r"\bno (?:doubt|question)\b|\bnot only\b|\bnone other than\b|\bnothing but\b|\bwithout (?:a |any )?doubt\b",
    re.IGNORECASE,
)
CORRECTION = re.compile(
    r"\b(?:no,? wait|wait,|on second thoughts?|correction:|scratch that|actually,? no|sorry,)", re.IGNORECASE
)
"""After these words an answer takes back its earlier choice."""

CLAUSE_END = re.compile(
    r"[.;:!?\n,]|\b(?:but|and|because|since|so|therefore|thus|hence|while|whereas|however|then|though|although)\b"
    r"|\bit(?:'s| is)\b",
    re.IGNORECASE,
)
LIST_BETWEEN = re.compile(
    rf"{CLOSING}\s*(?:,|/|&|\+|\bor\b|\band\b|\bnor\b|,\s*(?:or|and|nor)\b|\s)\s*(?:\b(?:also|even|both|either|maybe)\b\s*)?"
    rf"(?:\b(?:option|choice|the)\b\s*)?{OPENING}",
    re.IGNORECASE,
)
"""Everything between two choices of one list, such as "A or B", "both A and B", "A, B"."""

ORDINAL_ENDING = "(?:st|[nr]d|th)"
_NUMBER_SIGN = r"(?:is|:|=|#|number|no\.)*\s*[(\[]?"
NUMBER = re.compile(
    rf"\b(?:answer|number)\b\s*{_NUMBER_SIGN}(?P<answer>\d+|{'|'.join(NUMBERS)})\b"
    rf"|\b(?:option|choice|alternative)s?\b\s*{_NUMBER_SIGN}(?P<option>\d+|{'|'.join(NUMBERS)})\b"
    rf"|(?:#|\bno\.)\s*(?P<sign>\d+)\b"
    rf"|\b(?P<ordinal>{'|'.join(ORDINALS)}|last|\d+{ORDINAL_ENDING})\b\s+(?:option|choice|answer|one|alternative|candidate|statement)\b",
    re.IGNORECASE,
)
"""A choice by its number: "answer: 2", which may also be an option's text, "option 2", "#2", "the second option"."""

PREAMBLE = re.compile(
    r"^(?:sure|okay|ok|well|so|therefore|yes)?[\s,.!:]*(?:i (?:think|believe|would say)(?: that)?\s+)?"
    r"(?:(?:the|my) (?:\w+ )?(?:answer|option|choice) (?:is|would be)|answer|it's|it (?:is|was)"
    r"|(?:there|this|that) (?:is|are))?"
    r"[\s:,]*(?:that )?",
    re.IGNORECASE,
)

_EMPTY = """
a an the of to in on at for with by from and or but is are was were be been being it its he she they them this that
there his her their i you we not no none yes do does did has have had can cannot as so if then than all both one
some any what which who how when where while during after before into over under up out very just only also
"""
EMPTY_WORDS = frozenset(_EMPTY.split())
"""Words that do not distinguish options: an answer of these words alone repeats no part of an option."""


def option_mark(index: int) -> str:
    """Return the private character that stands for an option's full text."""
    assert 0 <= index < 63
    return chr(MARK_BASE + index)
