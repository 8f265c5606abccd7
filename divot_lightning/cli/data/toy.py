"""`divot data toy`: the toy world as shards."""

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot data toy",
        description="Make the toy world: tars of h264 clips with captions and questions, and a text tokenizer. "
        "The same settings give the same bytes; started again, it continues where it stopped.",
    )
    parser.add_argument("folder", help="where train/, validation/, held_out/ and text_tokenizer/ go")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (default: 32)")
    parser.add_argument("--train", type=int, default=4096, help="training clips (default: 4096)")
    parser.add_argument("--validation", type=int, default=256, help="clips of known combinations (default: 256)")
    parser.add_argument("--held-out", type=int, default=256, help="clips of combinations never trained on")
    parser.add_argument("--seed", type=int, default=0, help="decides all draws (default: 0)")
    parser.add_argument("--samples-per-shard", type=int, default=256, help="at most (default: 256)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The words after `divot data toy`.
    """
    args = parser().parse_args(argv)
    from divot_datamodules.toy.shards import ToyDataConfig, write_toy_data

    settings = ToyDataConfig(
        size=args.size,
        train=args.train,
        validation=args.validation,
        held_out=args.held_out,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
    )
    made = write_toy_data(args.folder, settings, progress=True)
    state = "made" if made else "already there, nothing to do"
    clips = f"{args.train} training, {args.validation} validation, {args.held_out} held-out clips"
    sys.stdout.write(f"{args.folder}: {clips} of {args.size} x {args.size} pixels; {state}\n")
    return 0
