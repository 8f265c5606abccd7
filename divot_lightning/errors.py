"""The error that users see, and parts of its messages."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

MAX_SEED = 2**64 - 1
"""The generators of torch take seeds of 64 bits."""


FORMAT_ERRORS = (KeyError, IndexError, ValueError, AttributeError, TypeError)
"""What `str.format` raises for a text with braces that it cannot fill."""


class UserError(ValueError):
    """Something in a recipe, a folder or the data is wrong and the user can fix it.

    The message says what is wrong, the offending value, what is allowed and what to do, in at most five lines;
    the command line shows it without a traceback.
    """


def require_at_least(least: float, where: str = "", /, **settings: float | None) -> None:
    """Refuse settings that are below a limit, or no finite number; None is allowed.

    Args:
        least: The limit.
        where: Precedes their names in the message.
        settings: Values by name.

    Raises:
        UserError: One of them is refused.

    >>> require_at_least(1, steps=2, width=None)
    """
    for name, value in settings.items():
        if value is not None and not least <= value < math.inf:
            raise UserError(f"{where}{name} is {value}; it must be at least {least}")


def require_one_of(allowed: Iterable[str], where: str = "", /, **settings: str) -> None:
    """Refuse settings that are none of the allowed words.

    Args:
        allowed: The words.
        where: Precedes the names of the settings in the message.
        settings: Values by name.

    Raises:
        UserError: One of them is refused.

    >>> require_one_of(["zero", "random"], init="zero")
    """
    words = list(allowed)
    for name, value in settings.items():
        if value not in words:
            raise UserError(f"{where}{name} is {value!r}; choose one of: {', '.join(words)}")


def require_seed(seed: int, name: str = "seed") -> int:
    """Return a seed of a random generator; refuse one that is negative or has more than 64 bits.

    >>> require_seed(7)
    7
    """
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"{name} is {seed}; it must be from 0 to {MAX_SEED}, the largest of 64 bits")
    return seed


def first_line(error: BaseException, length: int | None = 200) -> str:
    r"""Return the first line of an error's message, for a message of ours; the error's name if it has none.

    Args:
        error: The error.
        length: Most characters; None for all.

    >>> first_line(OSError("no such file\nsee the manual")), first_line(TimeoutError())
    ('no such file', 'TimeoutError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


def module_hint(message: str) -> str:
    r"""Return what to do about a module that cannot be imported, or nothing if the message is about something else.

    >>> module_hint("No module named 'my_heads.gmm'")
    '\ninstall the package my_heads, or name the folder that holds it: PYTHONPATH=FOLDER divot ...'
    """
    found = re.search(r"No module named '(\w+)", message)
    if not found:
        return ""
    if any(Path(name).exists() for name in (found[1], f"{found[1]}.py")):
        return "\nthe current folder, which has it, is not searched; to allow this: PYTHONPATH=. divot ..."
    return f"\ninstall the package {found[1]}, or name the folder that holds it: PYTHONPATH=FOLDER divot ..."


def did_you_mean(word: str, allowed: Iterable[str], form: str = "{}") -> str:
    """Return ` Did you mean 'x'?` for the nearest allowed word, or nothing.

    Args:
        word: What was given.
        allowed: What may be given.
        form: How the word is shown.

    >>> did_you_mean("max_step", ["max_steps", "devices"])
    " Did you mean 'max_steps'?"
    """
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {form.format(near[0])!r}?" if near else ""


def shortened(text: str, most: int) -> str:
    """Return a text, or its beginning and ` ...` if it has more characters than allowed.

    >>> shortened("abcdefghi", 9), shortened("abcdefghij", 9)
    ('abcdefghi', 'abcde ...')
    """
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first names of a list, and how many more there are.

    >>> first_of(["a", "b", "c"], 2), first_of(["a"], 2)
    ('a, b and 1 more', 'a')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def problem_lines(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each problem that names have, with the first three of these names.

    >>> problem_lines({"missing": ["bias", "scale"], "not expected": []})
    ['missing: bias, scale']
    """
    return [f"{what}: {first_of(names, 3)}" for what, names in problems.items() if names]
