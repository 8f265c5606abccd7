"""`divot data pack`: pack videos and pictures into shards."""

import argparse
import sys
from collections.abc import Sequence

from divot_lightning.io.command_parser import CommandParser


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data pack",
        description="Pack videos and pictures into shards. A folder holds media files, each with a .json or .txt of "
        "the same name. A jsonl holds one object per line. Its `video` or `image` is a path, relative to the jsonl, "
        "and its `videos` or `images` a list of paths; other fields hold texts, such as `caption`, `question`, "
        "`answer`, `conversations`, `story`.",
    )
    parser.add_argument("source", help="folder or .jsonl")
    parser.add_argument("output", help="folder of the shards")
    parser.add_argument(
        "--clip-seconds", type=float, help="cut videos into pieces of this length (default: do not cut)"
    )
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the pieces")
    parser.add_argument("--size", type=int, help="short side of the pieces in pixels (default: as in the source)")
    parser.add_argument("--samples-per-shard", type=int, default=256, help="largest number of samples in a shard")
    parser.add_argument(
        "--check",
        choices=("all", "first"),
        default="all",
        help="check of a file that is not cut: decode all frames, or only the first, which is at least ten times "
        "faster and does not find damage in later frames",
    )
    parser.add_argument(
        "--resize",
        choices=("bicubic", "pil_bilinear"),
        default="bicubic",
        help="filter for --size: swscale's, or Pillow's with torchvision's rounding, as released",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data pack`, and return the exit status."""
    args = parser().parse_args(argv)
    from divot_datamodules.preparation.packing import PackConfig, pack

    settings = PackConfig(args.clip_seconds, args.fps, args.size, args.samples_per_shard, args.check, args.resize)
    report = pack(args.source, args.output, settings, progress=True)
    state = "already there, nothing to do" if report.already_there else "made"
    counts = f"{report.samples} samples ({report.with_text} with texts) in {report.shards} shards"
    sys.stdout.write(f"{args.output}: {counts}; {state}\n")
    for sample in report.skipped:
        sys.stdout.write(f"left out: {sample.shard} {sample.key}: {sample.reason} ({sample.detail})\n")
    return 0
