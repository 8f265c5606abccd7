"""The error that users see, and the errors of libraries in its messages."""

import math


class UserError(ValueError):
    """Something in a recipe, a folder or the data is wrong and the user can fix it.

    The message says what is wrong, the offending value, what is allowed and what to do, in at most five lines;
    the command line shows it without a traceback.
    """


def require_at_least(least: float, where: str = "", **settings: float | None) -> None:
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


def first_line(error: BaseException, length: int | None = 200) -> str:
    r"""Return the first line of an error's message, for a message of ours; the error's name if it has none.

    Args:
        error: The error.
        length: Most characters; None for all.

    >>> first_line(OSError("no such file\nsee the manual")), first_line(TimeoutError())
    ('no such file', 'TimeoutError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
