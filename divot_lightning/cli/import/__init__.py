"""`divot import`: turn a downloaded checkpoint into a folder that recipes and commands can use."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.io.command_parser import CommandParser

KINDS = {
    "tokenizer": "Divot_tokenizer.bin -> a component folder `tokenizer`",
    "detokenizer": "Divot_detokenizer_stage1.bin or _stage2.bin -> a component folder `detokenizer`",
    "video_llm": "a folder with llm/ and agent/, such as Divot_sft_gen -> a component folder `video_llm`",
    "dynamicrafter": "DynamiCrafter's model.ckpt for 256 pixels -> folders unet and vae for a recipe's `pretrained`",
    "clip": "OpenCLIP's ViT-H-14 -> a transformers CLIP folder for a recipe's `pretrained`",
}
"""What can be imported, with what the import writes."""


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    kinds = "\n".join(f"  {name:<14}{text}" for name, text in KINDS.items())
    parser = CommandParser(
        prog="divot import",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turn a downloaded checkpoint into a folder that recipes and commands can use. Only weights are "
        f"read,\nno code in the file is run. The folder appears whole or not at all.\n\nkinds:\n{kinds}",
        epilog="example: divot import detokenizer Divot_detokenizer_stage1.bin --to runs/divot/detokenizer",
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=f"one of: {', '.join(KINDS)}")
    parser.add_argument(
        "file", metavar="FILE", help="the downloaded file (.bin, .ckpt, .pt or .safetensors), or folder"
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="new folder to write")
    parser.add_argument(
        "--vision", metavar="FILE", help="tokenizer only: OpenCLIP's ViT-H-14, if FILE does not contain the ViT"
    )
    parser.add_argument(
        "--text-tokenizer",
        metavar="FOLDER",
        help="video_llm only: the released text tokenizer, if it is not in FILE or beside it",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot import`, and return the exit status."""
    args = parser().parse_args(list(argv))
    for kind, option, value in (
        ("tokenizer", "vision", args.vision),
        ("video_llm", "text-tokenizer", args.text_tokenizer),
    ):
        if value is not None and args.kind != kind:
            raise UserError(f"--{option} has no effect on the import of a {args.kind}; leave it out")
    from divot_lightning.interop.import_clip import import_clip
    from divot_lightning.interop.import_detokenizer import import_detokenizer, import_dynamicrafter
    from divot_lightning.interop.import_tokenizer import import_tokenizer
    from divot_lightning.interop.import_video_llm import import_video_llm

    imports: dict[str, Callable[[str, str], Any]] = {
        "tokenizer": partial(import_tokenizer, vision=args.vision),
        "detokenizer": import_detokenizer,
        "video_llm": partial(import_video_llm, text_tokenizer=args.text_tokenizer),
        "dynamicrafter": import_dynamicrafter,
        "clip": import_clip,
    }
    done = imports[args.kind](args.file, args.to)
    sys.stdout.write(f"{done.folder}: {done.parameters / 1e6:.1f} M numbers\n")
    for reason, count in done.ignored.items():
        sys.stdout.write(f"not used: {count} names ({reason})\n")
    return 0
