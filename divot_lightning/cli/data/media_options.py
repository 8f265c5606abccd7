"""Options of the commands that read a jsonl list: where its media may lie. No torch in here."""

import argparse


def add_media_options(parser: argparse.ArgumentParser) -> None:
    """Add `--media-root` and `--media-from`."""
    parser.add_argument(
        "--media-root", help="folder or URL of the relative paths in a jsonl (default: that of the jsonl)"
    )
    parser.add_argument(
        "--media-from",
        choices=("root", "disk", "anywhere"),
        default="disk",
        help="allowed media paths in a jsonl: below the media root only, anywhere on this machine's disks, or also "
        "URLs",
    )
