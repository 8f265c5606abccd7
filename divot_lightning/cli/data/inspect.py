"""`divot data inspect`: what shards hold and what is wrong in them."""

import argparse
import os
import sys
from collections.abc import Sequence

from divot_lightning.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot data inspect",
        description="Read shards or a jsonl, decode a clip of every sample as training would, and show counts, sizes, "
        "durations and defects with shard and key. The exit status is 1 if there are defects.",
    )
    parser.add_argument("source", help="folder (also of folders), tar, glob, brace expansion, URL or jsonl")
    parser.add_argument("--media-root", help="of a jsonl: folder or URL of its paths (default: the jsonl's folder)")
    parser.add_argument("--size", type=int, default=32, help="height and width of the clips (default: 32)")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip (default: 16)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the clips (default: 8)")
    parser.add_argument("--short-videos", choices=("refuse", "squeeze"), default="refuse", help="(default: refuse)")
    parser.add_argument("--max-pixels", type=int, help="largest height x width that is decoded (default: 8K)")
    parser.add_argument("--max-clips", type=int, default=1, help="most clips of a video, as in training (default: 1)")
    parser.add_argument(
        "--max-sample-clips", type=int, default=64, help="most videos of a sample that has several (default: 64)"
    )
    parser.add_argument(
        "--media-from",
        choices=("root", "disk", "anywhere"),
        default="disk",
        help="of a jsonl: media below the media root alone, from any disk here, or also from URLs (default: disk)",
    )
    parser.add_argument("--tasks", help="also find samples whose texts allow none of these, such as caption,question")
    parser.add_argument("--tokenizer", metavar="RUN", help="also find cached features that are not of this tokenizer")
    parser.add_argument(
        "--max-length",
        type=int,
        help="also find samples that no sequence of so many tokens holds (needs --tasks and --tokenizer)",
    )
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per CPU, at most 8)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds that a sample may take (default: 30)")
    parser.add_argument("--copies-gb", type=float, default=20.0, help="disk for shards read as copies (default: 20)")
    parser.add_argument("--list", metavar="JSONL", help="write all defects, one per line; the report names some")
    parser.add_argument("--contact-sheet", metavar="PNG", help="write a picture of the first samples")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: The words after `divot data inspect`.
    """
    args = parser().parse_args(argv)
    if args.max_length is not None and not (args.tasks and args.tokenizer):
        raise UserError("--max-length needs --tasks and --tokenizer, which decide how long samples are.")
    from tqdm import tqdm

    from divot_datamodules.decoding.clip_sampling import ClipConfig
    from divot_datamodules.decoding.video import MAX_PIXELS
    from divot_datamodules.preparation.feature_checks import check_features
    from divot_datamodules.preparation.inspection import inspect_source, limits_for, open_for_inspection
    from divot_datamodules.preparation.inspection_report import write_contact_sheet, write_skipped
    from divot_datamodules.decoding.samples import SampleDecoder, TaskMixture

    clip = ClipConfig(
        height=args.size,
        width=args.size,
        frames=args.frames,
        fps=args.fps,
        short_videos=args.short_videos,
        max_pixels=args.max_pixels or MAX_PIXELS,
    )
    tasks = TaskMixture({name.strip(): 1.0 for name in args.tasks.split(",")}) if args.tasks else None
    source = open_for_inspection(
        args.source, media_root=args.media_root, media_from=args.media_from, copies_gb=args.copies_gb
    )
    units = [source.shard_path(unit) for unit in range(len(source.counts))]
    made_by = check_features(units, args.tokenizer) if args.tokenizer else None
    with tqdm(desc="samples", unit="sample", total=sum(source.counts)) as bar:
        report = inspect_source(
            source,
            SampleDecoder(clip, args.max_clips, made_by, args.max_sample_clips),
            tasks=tasks,
            limits=limits_for(args.tokenizer, args.max_length) if args.tokenizer else None,
            workers=min(8, os.cpu_count() or 1) if args.workers is None else args.workers,
            deadline=args.deadline,
            on_sample=bar.update,
        )
    sys.stdout.write("\n".join(report.lines()) + "\n")
    if args.list:
        write_skipped(report, args.list)
        sys.stdout.write(f"all defects: {args.list}\n")
    if args.contact_sheet:
        write_contact_sheet(report, args.contact_sheet)
        sys.stdout.write(f"contact sheet: {args.contact_sheet}\n")
    return 1 if report.skipped else 0
