"""`divot demo`: a page in the browser for trained runs."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.demo.limits import Limits
from divot_lightning.errors import UserError
from divot_lightning.inference.command_options import add_model_options, model_options
from divot_lightning.io.command_parser import CommandParser
from divot_lightning.io.quick_imports import quick_imports


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    usual = Limits()
    parser = CommandParser(
        prog="divot demo",
        description="Open a page in the browser: reconstruct a clip, ask about it, generate clips from text with every "
        "head side by side, tell a story. Only this machine can open it, unless --host says otherwise; nothing is "
        "loaded from or sent to other machines. Ctrl-C ends it and deletes its files.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run, exported or imported folder, or the folder of a quickstart or ablation",
    )
    parser.add_argument("--detokenizer", help="run folder of the de-tokenizer that all runs use")
    add_model_options(parser)
    parser.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="FILE",
        help="clip that the page offers as an example; may be given several times",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 lets the whole network use the page, without a password",
    )
    parser.add_argument("--port", type=int, default=7860, help="port, 0 for a free one")
    parser.add_argument("--max-upload-mb", type=int, default=usual.upload_mb, help="largest upload in MB")
    parser.add_argument("--max-seconds", type=float, default=usual.seconds, help="longest video in seconds")
    parser.add_argument("--max-queue", type=int, default=usual.waiting, help="largest number of waiting jobs")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot demo`, and return the exit status."""
    args = parser().parse_args(argv)
    limits = Limits(upload_mb=args.max_upload_mb, seconds=args.max_seconds, waiting=args.max_queue)
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is {args.port}; it must be from 0 to 65535")
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f'the page needs {" and ".join(missing)}\nin a checkout of divot-lightning: pip install ".[demo]"'
        )
    with quick_imports():
        from divot_lightning.demo.server import serve
        from divot_lightning.demo.systems import find_systems

    systems = find_systems(args.runs, args.detokenizer, **model_options(args))
    serve(
        systems,
        host=args.host,
        port=args.port,
        limits=limits,
        videos=[Path(name) for name in args.example],
        started=_tell,
    )
    return 0


def _tell(address: str) -> None:
    sys.stdout.write(f"{address}  (Ctrl-C ends it)\n")
    sys.stdout.flush()
