"""`divot data encode`: a trained tokenizer over shards, once."""

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """Builds the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot data encode",
        description="Run a trained tokenizer over videos and write shards of features, which the LLM stages read in "
        "place of videos. Started again, it goes on where it stopped.",
    )
    parser.add_argument("--tokenizer", required=True, help="run folder of a stage that trains or uses a tokenizer")
    parser.add_argument("--input", required=True, help="videos: folder, tar, glob, brace expansion, URL or jsonl")
    parser.add_argument("--output", required=True, help="folder of the feature shards")
    parser.add_argument("--media-root", help="folder that a jsonl's relative paths start from (default: the jsonl's)")
    parser.add_argument("--size", type=int, default=32, help="height and width of the clips (default: 32)")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip (default: 16)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the clips (default: 8)")
    parser.add_argument(
        "--short-videos",
        choices=("refuse", "squeeze"),
        default="refuse",
        help="leave out videos shorter than a clip, or take its frames closer together (default: refuse)",
    )
    parser.add_argument(
        "--max-clips", type=int, default=1, help="most clips of a video; 1 is the one in its middle (default: 1)"
    )
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed", "bf16-true"),
        default="32-true",
        help="of the tokenizer; take the training's for bit-for-bit the same features (default: 32-true)",
    )
    parser.add_argument("--samples-per-shard", type=int, default=1024, help="at most (default: 1024)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples at a time (default: 32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--max-bad-fraction", type=float, default=0.05, help="largest share left out (default: 0.05)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: The words after `divot data encode`.
    """
    args = parser().parse_args(argv)
    from divot_datamodules.clip_sampling import ClipSettings
    from divot_datamodules.encoding import EncodeSettings, encode_shards
    from divot_datamodules.ledger import Budget

    clip = ClipSettings(args.size, args.size, args.frames, args.fps, args.short_videos)
    report = encode_shards(
        args.tokenizer,
        args.input,
        args.output,
        EncodeSettings(clip, args.max_clips, args.precision, args.samples_per_shard),
        media_root=args.media_root,
        batch_size=args.batch_size,
        budget=Budget(args.max_bad_fraction),
        device=args.device,
        progress=True,
    )
    state = "already there, nothing to do" if report.already_there else "made"
    counts = f"features of {report.samples} samples in {report.shards} shards"
    sys.stdout.write(f"{args.output}: {counts}, {len(report.defects)} left out; {state}\n")
    return 0
