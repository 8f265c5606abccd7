"""`divot data`: make, pack, inspect, index and encode shards."""

import importlib
import sys
from collections.abc import Sequence

from divot_lightning.errors import UserError, did_you_mean

COMMANDS: dict[str, str] = {
    "toy": "make the toy world's shards: divot data toy data/toy",
    "toy-stories": "make stories of several clips: divot data toy-stories data/toy_stories",
    "pack": "pack a folder or a jsonl of videos into shards: divot data pack clips/ shards/",
    "inspect": "show what shards hold, and samples that cannot be used: divot data inspect shards/",
    "index": "write the index of each shard, so that training starts sooner: divot data index shards/",
    "encode": "cache the features of a trained tokenizer: divot data encode --tokenizer RUN --input A --output B",
    "skip": "skip the samples of some steps of a stopped run: divot data skip RUN --steps 120:140",
}
"""Every subcommand with its line in the help; `main` of the module of its name serves it, with `_` in place of `-`."""


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data`, and return the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return 0
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS, "divot data {}")
        raise UserError(f"there is no command 'data {argv[0]}'; commands: {', '.join(COMMANDS)}.{hint}")
    module = importlib.import_module(f"divot_lightning.cli.data.{argv[0].replace('-', '_')}")
    return int(module.main(list(argv[1:])))


def help_text() -> str:
    """Return what `divot data --help` prints."""
    table = "\n".join(f"  {name:<11} {line}" for name, line in COMMANDS.items())
    closing = "`divot data COMMAND --help` shows the options of a command."
    return f"usage: divot data COMMAND [OPTIONS]\n\ncommands:\n{table}\n\n{closing}\n"
