"""The parser of a command: a wrong option is told in two lines, as every other mistake. No torch in here."""

import argparse
from typing import Any, NoReturn

from divot_lightning.errors import MAX_SEED, UserError, did_you_mean


def seed(text: str) -> int:
    """Read the value of an option `--seed`: the `type` of the option.

    >>> seed("7")
    7
    """
    if not 0 <= (value := int(text)) <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to {MAX_SEED}, the largest seed of 64 bits")
    return value


class CommandParser(argparse.ArgumentParser):
    """argparse's parser; its errors are a `UserError` instead of the usage, which has up to 20 lines."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument whose help ends with its default value, if it has one."""
        default = settings.get("default")
        if isinstance(default, int | float | str) and default not in ("", argparse.SUPPRESS):
            shown = f"{default:g}" if isinstance(default, float) else default
            settings["help"] = f"{settings['help']} (default: {shown})"
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the error of a wrong command line; an unknown option gets the nearest known one."""
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        hint = did_you_mean(unknown, self._option_string_actions)
        raise UserError(f"{message}.{hint}\n`{self.prog} --help` shows what is allowed")
