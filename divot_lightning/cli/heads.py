"""`divot heads`: short for `divot parts heads`."""

from collections.abc import Sequence

from divot_lightning.cli import parts
from divot_lightning.io.command_parser import CommandParser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot heads`; there are none but `--help`."""
    CommandParser(
        prog="divot heads",
        description="List the installed generation heads: name for --model.head, class, distribution, version, "
        "file and description. The same as `divot parts heads`.",
        epilog="A head comes from the entry-point group divot_lightning.heads; see docs/parts/heads.md.",
    ).parse_args(list(argv))
    return parts.main(["heads"])
