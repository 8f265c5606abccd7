"""`divot data toy-stories`: write stories of the toy world as shards."""

import argparse
import sys
from collections.abc import Sequence

from divot_lightning.io.command_parser import CommandParser, seed


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data toy-stories",
        description="Write stories of the toy world: tars of several h264 clips with a sentence each, in which one "
        "attribute changes from clip to clip. The same settings give the same bytes. After a stop, the same command "
        "continues.",
    )
    parser.add_argument("folder", help="folder of train/, validation/, held_out/ and text_tokenizer/")
    parser.add_argument(
        "--continuous", action="store_true", help="scenes: each clip continues where the one before ended"
    )
    parser.add_argument(
        "--look", choices=("day", "night"), default="night", help="colours of the clips; day looks like the toy world"
    )
    parser.add_argument("--num-clips", type=int, default=3, help="clips of a story")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--train", type=int, default=2048, help="training stories")
    parser.add_argument("--validation", type=int, default=128, help="validation stories")
    parser.add_argument(
        "--held-out",
        type=int,
        default=128,
        help="stories that begin with a combination of attributes that training never sees",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of all sampling")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data toy-stories`, and return the exit status."""
    args = parser().parse_args(argv)
    from divot_datamodules.toy.shards import write_toy_data
    from divot_datamodules.toy.story_shards import ToyStoryConfig

    settings = {name: value for name, value in vars(args).items() if name != "folder"}
    made = write_toy_data(args.folder, ToyStoryConfig(**settings), progress=True)
    state = "made" if made else "already there, nothing to do"
    stories = f"{args.train} training, {args.validation} validation, {args.held_out} held-out stories"
    sys.stdout.write(f"{args.folder}: {stories} of {args.num_clips} clips; {state}\n")
    return 0
