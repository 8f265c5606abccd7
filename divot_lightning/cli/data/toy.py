"""`divot data toy`: write the toy world as shards."""

import argparse
import sys
from collections.abc import Sequence

from divot_lightning.io.command_parser import CommandParser, seed


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data toy",
        description="Write the toy world: tars of h264 clips with captions and questions, and a text tokenizer. "
        "The same settings give the same bytes. After a stop, the same command continues.",
    )
    parser.add_argument("folder", help="folder of train/, validation/, held_out/ and text_tokenizer/")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--train", type=int, default=4096, help="training clips")
    parser.add_argument(
        "--validation", type=int, default=256, help="validation clips, with combinations that training clips show"
    )
    parser.add_argument("--held-out", type=int, default=256, help="clips with combinations that training never sees")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all sampling")
    parser.add_argument("--samples-per-shard", type=int, default=256, help="largest number of samples in a shard")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data toy`, and return the exit status."""
    args = parser().parse_args(argv)
    from divot_datamodules.toy.shards import ToyDataConfig, write_toy_data

    settings = {name: value for name, value in vars(args).items() if name != "folder"}
    made = write_toy_data(args.folder, ToyDataConfig(**settings), progress=True)
    state = "made" if made else "already there, nothing to do"
    clips = f"{args.train} training, {args.validation} validation, {args.held_out} held-out clips"
    sys.stdout.write(f"{args.folder}: {clips} of {args.size} x {args.size} pixels; {state}\n")
    return 0
