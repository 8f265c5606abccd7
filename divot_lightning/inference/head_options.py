"""Read the sampling settings of a head from a command line: `--head.guidance 2` or `--head.guidance=2`.

No torch in here.
"""

from collections.abc import Sequence

from divot_lightning.errors import UserError

PREFIX = "--head."
HELP = "sampling setting of the run's head, such as --head.variance_scale 0.5; a wrong NAME lists all settings"


def split_head_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the sampling settings of a head from the other words of a command.

    Args:
        words: The words of the command line.

    Returns:
        The values by name, as strings, and the other words.

    Raises:
        UserError: A setting has no value or no name, or is given twice.

    >>> split_head_options(["run", "--head.steps", "20", "--num", "2", "--head.solver=euler"])
    ({'steps': '20', 'solver': 'euler'}, ['run', '--num', '2'])
    """
    settings: dict[str, str] = {}
    others: list[str] = []
    left = iter(words)
    for word in left:
        if not word.startswith(PREFIX):
            others.append(word)
            continue
        name, equals, value = word.removeprefix(PREFIX).partition("=")
        given = value if equals else next(left, None)
        if not name or given is None:
            raise UserError(f"{word} lacks a {'value' if name else 'name'}; write {PREFIX}NAME VALUE")
        if name in settings:
            raise UserError(f"{PREFIX}{name} is given twice, as {settings[name]} and {given}")
        settings[name] = given
    return settings, others
