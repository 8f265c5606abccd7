"""Foreign text, such as file names, made safe to print."""

import re

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing, and the replacements of bytes that are no UTF-8."""


def printable(text: str) -> str:
    r"""Return a text of one line with escapes in place of characters that a terminal would act on.

    A file name may hold any character: one with an ESC could clear the screen or hide the text before it.

    >>> printable("caf\u00e9 \x1b[2J.mp4")
    'café \\x1b[2J.mp4'
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
