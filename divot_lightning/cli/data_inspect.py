"""`divot data inspect`: what shards hold and what is wrong in them."""

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """Builds the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot data inspect",
        description="Read shards, decode a clip of every sample as training would, and show counts, sizes, durations "
        "and defects with shard and key. The exit status is 1 if there are defects.",
    )
    parser.add_argument("source", help="folder (also of folders), tar, glob, brace expansion or URL")
    parser.add_argument("--size", type=int, default=32, help="height and width of the clips (default: 32)")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip (default: 16)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the clips (default: 8)")
    parser.add_argument("--contact-sheet", metavar="PNG", help="write a picture of the first samples")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: The words after `divot data inspect`.
    """
    args = parser().parse_args(argv)
    from tqdm import tqdm

    from divot_datamodules.clip_sampling import ClipSettings
    from divot_datamodules.inspection import find_shards, inspect_shards, write_contact_sheet

    clip = ClipSettings(height=args.size, width=args.size, frames=args.frames, fps=args.fps)
    with tqdm(desc="samples", unit="sample") as bar:
        report = inspect_shards(find_shards(args.source), clip, on_sample=bar.update)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    if args.contact_sheet:
        write_contact_sheet(report, args.contact_sheet)
        sys.stdout.write(f"contact sheet: {args.contact_sheet}\n")
    return 1 if report.defects else 0
