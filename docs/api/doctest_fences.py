"""Shows the doctests of docstrings as code: to Markdown, `>>>` would be three quotations inside each other."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)\S.*)*", re.MULTILINE)
"""A line that begins with `>>>` and what follows it up to an empty line."""


def fenced(text: str) -> str:
    """Return a docstring with its doctests between code fences."""
    return DOCTEST.sub(lambda found: f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```", text)


class DoctestFences(griffe.Extension):
    """Puts fences around the doctests of every docstring, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was loaded."""
        if obj.docstring is not None and "```" not in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
