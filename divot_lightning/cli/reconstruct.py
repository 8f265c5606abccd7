"""`divot reconstruct`: encode and decode clips, and write them as mp4 files."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divot_lightning.errors import require_at_least
from divot_lightning.inference.command_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
    model_options,
)
from divot_lightning.io.command_parser import CommandParser, seed
from divot_lightning.io.output_files import require_writable
from divot_lightning.io.quick_imports import quick_imports


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot reconstruct",
        description="Encode clips with the tokenizer of a run and decode them with its de-tokenizer. Writes "
        "KEY.mp4 with its settings as json, KEY_original.mp4, and KEY_compare.mp4, which shows both side by side. "
        "Inputs without a usable clip are skipped.",
    )
    parser.add_argument("run", help="run folder of a stage that trains or uses a tokenizer and a de-tokenizer")
    parser.add_argument("input", nargs="+", help="videos or pictures, or shards: folder, tar, glob or URL")
    parser.add_argument("--output", required=True, help="folder of the files")
    parser.add_argument("--format", default="mp4", help="mp4, gif, webm, mkv or avi")
    parser.add_argument("--jsonl", action="store_true", help="print one JSON object per clip, with its three files")
    parser.add_argument("--num", type=int, default=8, help="number of clips, from the first inputs")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the de-tokenizer's noise")
    parser.add_argument(
        "--num-tokens",
        type=int,
        metavar="K",
        help="decode the first K tokens of each clip only (default: all); for tokenizers that were trained with "
        "bottleneck.nested_dropout",
    )
    add_decoding_options(parser)
    add_model_options(parser, prompts=False)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot reconstruct`, and return the exit status."""
    args = parser().parse_args(argv)
    require_at_least(1, "--", num=args.num)
    with quick_imports():
        from tqdm import tqdm

        from divot_datamodules.loading.skipped_samples import skipped_lines
        from divot_lightning.inference.pipeline import DivotPipeline
        from divot_lightning.inference.pipeline_options import Decoding
        from divot_lightning.inference.reconstruct import reconstruct_files
        from divot_lightning.parts.sources import SkippedSample

    require_writable(Path(args.output, f"clip.{args.format}"))
    skipped: list[SkippedSample] = []
    pipeline = DivotPipeline.from_pretrained(args.run, args.detokenizer, **model_options(args))
    options: dict[str, Any] = {"num": args.num, "seed": args.seed, "num_tokens": args.num_tokens, "suffix": args.format}
    options["decoding"] = Decoding(**decoding_options(args))
    files = reconstruct_files(pipeline, args.input, args.output, **options, on_skip=skipped.append)
    count = 0
    with tqdm(total=args.num, desc="clips", unit="clip") as bar:
        for comparison in files:  # not over the bar, which closes itself at the end of its iterator
            count += 1
            bar.update()
            if args.jsonl:
                sys.stdout.write(json.dumps(_row(comparison), ensure_ascii=False) + "\n")
        bar.total = count  # there may be fewer than --num
    shown = f"{args.output}: {count} clip{'' if count == 1 else 's'}; look at *_compare.{args.format}\n"
    # Between the objects of --jsonl other lines would be in the way.
    told = sys.stderr if args.jsonl else sys.stdout
    told.write(shown + "".join(line + "\n" for line in skipped_lines(skipped)))
    return 0


def _row(comparison: Path) -> dict[str, str]:
    """Return the three files of a clip by the path of its comparison."""
    key = comparison.stem.removesuffix("_compare")
    names = {"file": key, "original": f"{key}_original", "comparison": f"{key}_compare"}
    return {what: str(comparison.with_stem(name)) for what, name in names.items()}
