"""`divot data index`: an index beside each shard, so that training need not scan the shards when it starts."""

import argparse
import sys
from collections.abc import Sequence

from divot_lightning.io.printing import printable


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot data index",
        description="Note where each sample of each shard lies, in a file beside the shard. Training reads any sample "
        "by its place; without these files it scans the shards' headers when it starts for the first time. Shards "
        "that `divot data toy`, `pack` and `encode` write have theirs. The exit status is 1 if there are defects.",
    )
    parser.add_argument("source", help="folder (also of folders), tar, glob, brace expansion or URL")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The words after `divot data index`.
    """
    args = parser().parse_args(argv)
    from tqdm import tqdm

    from divot_datamodules.preparation.inspection import find_shards
    from divot_datamodules.shards.index_files import put_index_beside

    shards = find_shards(args.source)
    made, samples, defects = 0, 0, []
    for shard in tqdm(shards, desc="shards", unit="shard"):
        index, is_new = put_index_beside(shard)
        made, samples = made + is_new, samples + len(index.keys)
        defects += [f"{reason}: {shard} {key} ({detail})" for reason, key, detail in index.skipped]
    sys.stdout.write(
        f"{args.source}: {samples} samples in {len(shards)} shards; {made} indexes made, "
        f"{len(shards) - made} were there; {len(defects)} defects\n"
    )
    sys.stdout.write("".join(printable(line) + "\n" for line in defects))
    return 1 if defects else 0
