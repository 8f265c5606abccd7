"""`divot data index`: write an index beside each shard, so that training need not scan the shards first."""

import argparse
import sys
from collections.abc import Sequence

from divot_lightning.io.command_parser import CommandParser
from divot_lightning.io.printing import printable


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data index",
        description="Write the position of each sample of a shard into an index file beside the shard. Training reads "
        "samples by their positions; without index files it scans all shards when it starts for the first time. Shards "
        "of `divot data toy`, `pack` and `encode` have index files already. The exit status is 1 if "
        "samples cannot be used.",
    )
    parser.add_argument("source", help="folder (with subfolders), tar, glob, brace expansion or URL")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data index`, and return the exit status."""
    args = parser().parse_args(argv)
    from tqdm import tqdm

    from divot_datamodules.preparation.inspection import find_shards
    from divot_datamodules.shards.index_files import put_index_beside

    shards = find_shards(args.source)
    made, samples, skipped = 0, 0, []
    for shard in tqdm(shards, desc="shards", unit="shard"):
        index, is_new = put_index_beside(shard)
        made, samples = made + is_new, samples + len(index.keys)
        skipped += [f"{reason}: {shard} {key} ({detail})" for reason, key, detail in index.skipped]
    sys.stdout.write(
        f"{args.source}: {samples} samples in {len(shards)} shards; {made} indexes written, "
        f"{len(shards) - made} existed; {len(skipped)} samples skipped\n"
    )
    sys.stdout.write("".join(printable(line) + "\n" for line in skipped))
    return 1 if skipped else 0
