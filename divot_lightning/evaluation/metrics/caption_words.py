"""Split captions into words as the tools of the captioning literature do."""

import re

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
_TOKEN = re.compile(
    r"""
      (?:https?://|www\.)\S*[\w/]             # addresses
    | [\w.+-]+@\w[\w.-]*\w
    | (?:[^\W\d_]\.){2,}                      # u.s., p.m.
    | (?:dr|mr|mrs|ms|vs|jr|sr|prof|etc)\.
    | 'n' | o'\w+ | '(?:t(?=is\b|was\b)) | c\+\+
    | n't\b | '(?:s|m|d|ll|re|ve)\b           # the ends of isn't, it's, we'll
    | \d+(?:[.,:]\d+)+
    | \w+?(?=n't\b)
    | \w+(?:[-/.&]\w+)*
    | [$%&\#@*+=~<>^|()\[\]{}]
    """,
    re.VERBOSE,
)


def caption_words(text: str) -> list[str]:
    """Split a caption as COCO's caption evaluation does: Penn Treebank words in lower case, without punctuation.

    COCO's evaluation calls Stanford's PTBTokenizer, which is a Java program; this splits the words of captions as it
    does. Brackets become words such as "-lrb-", which COCO's evaluation does not remove either.

    >>> caption_words("A man's red car isn't there.")
    ['a', 'man', "'s", 'red', 'car', 'is', "n't", 'there']
    """
    words = (match[0] for match in _TOKEN.finditer(text.lower()))
    return [part for word in words for part in _SPLIT_WORDS.get(word, (_BRACKETS.get(word, word),))]
