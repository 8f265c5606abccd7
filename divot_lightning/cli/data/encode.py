"""`divot data encode`: cache the features of a trained tokenizer as shards."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from divot_lightning.cli.data.media_options import add_media_options
from divot_lightning.io.command_parser import CommandParser
from divot_lightning.io.quick_imports import quick_imports


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data encode",
        description="Encode videos with a trained tokenizer and write shards of features, which the LLM stages read "
        "instead of videos. After a stop, the same command continues.",
    )
    parser.add_argument("--tokenizer", required=True, help="run folder of a stage that trains or uses a tokenizer")
    parser.add_argument(
        "--detokenizer",
        metavar="RUN",
        help="also cache the latents of this run's de-tokenizer, so that its refinement and adaptation need no videos",
    )
    parser.add_argument("--input", required=True, help="videos: folder, tar, glob, brace expansion, URL or jsonl")
    parser.add_argument("--output", required=True, help="folder of the feature shards")
    add_media_options(parser)
    parser.add_argument("--size", type=int, help="height and width of the clips (default: as in the tokenizer's run)")
    parser.add_argument("--frames", type=int, help="frames per clip (default: as in the tokenizer's run)")
    parser.add_argument("--fps", type=float, help="frames per second of the clips (default: as in the tokenizer's run)")
    parser.add_argument(
        "--short-videos",
        choices=("refuse", "squeeze"),
        help="skip videos that are shorter than a clip, or take their frames closer together (default: as in the "
        "tokenizer's run)",
    )
    parser.add_argument(
        "--max-clips", type=int, default=1, help="largest number of clips of a video; 1 is the clip in its middle"
    )
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed", "bf16-true"),
        default="32-true",
        help="precision of the tokenizer; with that of the training, features equal those of the training bit for bit",
    )
    parser.add_argument("--max-sample-clips", type=int, default=64, help="skip samples with more videos than this")
    parser.add_argument("--samples-per-shard", type=int, default=1024, help="largest number of samples in a shard")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per batch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--max-skipped-fraction", type=float, default=0.05, help="largest fraction of skipped samples")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data encode`, and return the exit status."""
    args = parser().parse_args(argv)
    with quick_imports():
        from divot_datamodules.loading.skipped_samples import Budget, skipped_lines
        from divot_lightning.inference.feature_encoding import EncodeConfig, encode_shards, tokenizer_clip

    given: dict[str, Any] = {"height": args.size, "width": args.size, "frames": args.frames, "fps": args.fps}
    given["short_videos"] = args.short_videos
    given = {name: value for name, value in given.items() if value is not None}
    clip = replace(tokenizer_clip(args.tokenizer), **given)
    report = encode_shards(
        args.tokenizer,
        args.input,
        args.output,
        EncodeConfig(clip, args.max_clips, args.precision, args.samples_per_shard, args.max_sample_clips),
        detokenizer=args.detokenizer,
        media_root=args.media_root,
        media_from=args.media_from,
        batch_size=args.batch_size,
        budget=Budget(args.max_skipped_fraction),
        device=args.device,
        progress=True,
    )
    state = "already there, nothing to do" if report.already_there else "made"
    what = "features" if args.detokenizer is None else "features and latents"
    counts = f"{what} of {report.samples} samples in {report.shards} shards"
    size = f"clips of {clip.frames} frames of {clip.height} x {clip.width} at {clip.fps:g} per second"
    sys.stdout.write(f"{args.output}: {counts}, {size}; {state}\n")
    sys.stdout.write("".join(line + "\n" for line in skipped_lines(report.skipped)))
    return 0
