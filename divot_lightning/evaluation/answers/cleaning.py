"""Remove what models write around an answer: thoughts, tags, markup."""

import re
import unicodedata

_ENCLOSED = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)
_COMMAND = re.compile(r"\\(boxed|text|mathbf|mathrm|textbf)\s*\{([^{}]*)\}")
_SIGNS = {
    **dict.fromkeys([0x2018, 0x2019, 0xB4], "'"),
    **dict.fromkeys([0x201C, 0x201D], '"'),
    **dict.fromkeys([0x2013, 0x2014], "-"),
    **dict.fromkeys([0x300C, 0x3010], "["),
    **dict.fromkeys([0x300D, 0x3011], "]"),
    0x2192: "->",
}
"""Typographic quotes, dashes, brackets and arrows, by code point, to their ASCII forms."""


def clean_answer(answer: str) -> str:
    r"""Return an answer without thoughts in tags, special tokens, and markup of Markdown, HTML and LaTeX.

    Thoughts are the text before the last `</think>`, and the text behind a `<think>` that is never closed. Of several
    `<answer>` tags the content of the last one is kept. `\boxed{B}` becomes "answer: B".

    >>> clean_answer("<think>A or B?</think> **B**")
    'B'
    """
    text = re.sub("[\ue000-\uf8ff]", " ", answer)  # private characters, which stand for options later
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1]
    text = re.split(r"<think(?:ing)?>", text, flags=re.IGNORECASE)[0]
    answers = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, flags=re.IGNORECASE | re.DOTALL)
    text = next((content for content in reversed(answers) if content.strip()), text)
    text = re.sub(r"<\|.*?\|>|</?s>", " ", text)
    text = _ENCLOSED.sub(r" \2 ", text)
    while _COMMAND.search(text):
        text = _COMMAND.sub(lambda match: f" answer: {match[2]} " if match[1] == "boxed" else match[2], text)
    return re.sub(r"[*_`$#\\]+(?!\d)", "", text).strip()


def bare_text(text: str) -> str:
    """Return a text without brackets, quotes and punctuation around it.

    >>> bare_text("(B).")
    'B'
    """
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)
