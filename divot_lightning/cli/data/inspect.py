"""`divot data inspect`: show what shards hold, and samples that cannot be used."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from divot_lightning.cli.data.media_options import add_media_options
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.io.command_parser import CommandParser

if TYPE_CHECKING:
    from divot_datamodules.decoding.clip_sampling import ClipConfig
    from divot_datamodules.preparation.inspection_report import ShardReport


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot data inspect",
        description="Read shards or a jsonl, decode a clip of every sample as in training, and show counts, sizes, "
        "durations, and the samples that cannot be used, with reason, shard and key. The exit status is 1 if there are "
        "any.",
    )
    parser.add_argument("source", help="folder (with subfolders), tar, glob, brace expansion, URL or jsonl")
    _add_reading(parser)
    _add_clips(parser)
    _add_checks(parser)
    parser.add_argument(
        "--list",
        metavar="JSONL",
        help="write all samples that cannot be used, one per line; the report shows only some",
    )
    parser.add_argument("--contact-sheet", metavar="PNG", help="write a picture of the first samples")
    return parser


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how the source is read."""
    add_media_options(parser)
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per CPU, at most 8)")
    parser.add_argument(
        "--deadline", type=float, default=30.0, help="longest time for reading and decoding one sample, in seconds"
    )
    parser.add_argument(
        "--copies-gb", type=float, default=20.0, help="disk space in GB for local copies of remote shards"
    )


def _add_clips(parser: argparse.ArgumentParser) -> None:
    """Add how clips are cut."""
    parser.add_argument("--size", type=int, default=32, help="height and width of the clips")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the clips")
    parser.add_argument(
        "--short-videos",
        choices=("refuse", "squeeze"),
        default="refuse",
        help="report videos that are shorter than a clip, or take their frames closer together",
    )
    parser.add_argument("--max-pixels", type=int, help="most pixels of a decoded picture (default: 7680 x 4320)")
    parser.add_argument("--max-clips", type=int, default=1, help="largest number of clips of a video")


def _add_checks(parser: argparse.ArgumentParser) -> None:
    """Add what else makes a sample unusable."""
    parser.add_argument("--max-sample-clips", type=int, default=64, help="report samples with more videos than this")
    parser.add_argument(
        "--tasks", help="also report samples without a text for any of these tasks, such as caption,question"
    )
    parser.add_argument("--tokenizer", metavar="RUN", help="also report cached features of other tokenizers than this")
    parser.add_argument(
        "--max-length",
        type=int,
        help="also report samples with more tokens than this (needs --tasks and --tokenizer)",
    )


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot data inspect`, and return the exit status."""
    args = parser().parse_args(argv)
    if args.max_length is not None and not (args.tasks and args.tokenizer):
        raise UserError("--max-length needs --tasks and --tokenizer, which decide how many tokens a sample has.")
    require_at_least(1, "--", **{"max-length": args.max_length})
    from divot_datamodules.preparation.inspection_report import write_contact_sheet, write_skipped

    report = _inspect(args)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    if args.list:
        write_skipped(report, args.list)
        sys.stdout.write(f"all of them: {args.list}\n")
    if args.contact_sheet:
        write_contact_sheet(report, args.contact_sheet)
        sys.stdout.write(f"contact sheet: {args.contact_sheet}\n")
    return 1 if report.skipped else 0


def _inspect(args: argparse.Namespace) -> "ShardReport":
    """Open the source and read its samples, with a bar of progress."""
    from tqdm import tqdm

    from divot_datamodules.decoding.samples import SampleDecoder
    from divot_datamodules.preparation.feature_checks import check_features
    from divot_datamodules.preparation.inspection import inspect_source, limits_for, open_for_inspection
    from divot_datamodules.tasks.mixture import TaskMixture

    clip = _clip(args)
    tasks = TaskMixture({name.strip(): 1.0 for name in args.tasks.split(",")}) if args.tasks else None
    source = open_for_inspection(
        args.source, media_root=args.media_root, media_from=args.media_from, copies_gb=args.copies_gb
    )
    shards = [source.shard_path(shard) for shard in range(len(source.counts))]
    tokenizer_sha256 = check_features(shards, args.tokenizer) if args.tokenizer else None
    with tqdm(desc="samples", unit="sample", total=sum(source.counts)) as bar:
        return inspect_source(
            source,
            SampleDecoder(clip, args.max_clips, tokenizer_sha256, args.max_sample_clips),
            tasks=tasks,
            limits=limits_for(args.tokenizer, args.max_length) if args.tokenizer else None,
            workers=min(8, os.cpu_count() or 1) if args.workers is None else args.workers,
            deadline=args.deadline,
            on_sample=bar.update,
        )


def _clip(args: argparse.Namespace) -> "ClipConfig":
    from divot_datamodules.decoding.clip_sampling import ClipConfig
    from divot_datamodules.decoding.video import MAX_PIXELS

    return ClipConfig(
        height=args.size,
        width=args.size,
        frames=args.frames,
        fps=args.fps,
        short_videos=args.short_videos,
        max_pixels=MAX_PIXELS if args.max_pixels is None else args.max_pixels,
    )
