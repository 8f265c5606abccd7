"""Run several `divot` commands one after the other in one process: importing torch takes longer than a small command.

Run: `python -m divot_lightning.cli.several "data toy DATA" "evaluate RUN --benchmark toy --data DATA"`
"""

import shlex
import sys
from collections.abc import Sequence

from divot_lightning.cli.main import main as run_divot


def main(commands: Sequence[str]) -> int:
    """Run the commands.

    Args:
        commands: Each without the word `divot`.

    Returns:
        The exit status of the first command that fails, 0 if none does.
    """
    return next((status for words in commands if (status := run_divot(shlex.split(words)))), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
