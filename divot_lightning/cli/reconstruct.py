"""`divot reconstruct`: encode and decode clips, and write them as mp4 files."""

import argparse
import sys
from collections.abc import Sequence

from divot_lightning.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot reconstruct",
        description="Encode clips with the tokenizer of a run and decode them with its de-tokenizer. Writes "
        "KEY.mp4, KEY_original.mp4 and KEY_compare.mp4, which shows both side by side. Inputs without a usable clip "
        "are skipped.",
    )
    parser.add_argument("run", help="run folder of a stage that trains or uses a tokenizer and a de-tokenizer")
    parser.add_argument("input", nargs="+", help="videos or pictures, or shards: folder, tar, glob or URL")
    parser.add_argument("--output", required=True, help="folder of the mp4 files")
    parser.add_argument("--num", type=int, default=8, help="number of clips, from the first inputs (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the de-tokenizer's noise (default: 0)")
    parser.add_argument(
        "--num-tokens",
        type=int,
        metavar="K",
        help="decode the first K tokens of each clip only (default: all); for tokenizers that were trained with "
        "bottleneck.nested_dropout",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot reconstruct`, and return the exit status."""
    args = parser().parse_args(argv)
    if args.num < 1:
        raise UserError(f"--num is {args.num}; it must be at least 1")
    from tqdm import tqdm

    from divot_datamodules.loading.skipped_samples import left_out_lines
    from divot_lightning.inference.reconstruct import reconstruct_files
    from divot_lightning.parts.sources import SkippedSample

    defects: list[SkippedSample] = []
    options = {"num": args.num, "seed": args.seed, "device": args.device, "num_tokens": args.num_tokens}
    files = reconstruct_files(args.run, args.input, args.output, **options, on_skip=defects.append)
    count = sum(1 for _ in tqdm(files, total=args.num, desc="clips", unit="clip"))
    sys.stdout.write(f"{args.output}: {count} clip{'' if count == 1 else 's'}; look at *_compare.mp4\n")
    sys.stdout.write("".join(line + "\n" for line in left_out_lines(defects)))
    return 0
