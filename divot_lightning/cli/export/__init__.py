"""`divot export`: write the models of a run in the formats of transformers, PEFT and diffusers."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.io.command_parser import CommandParser
from divot_lightning.io.quick_imports import quick_imports


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot export",
        description="Write the models of a run into one new folder: the language model for transformers, denoiser and "
        "VAE for diffusers, adapters for PEFT, and all of them together for DivotPipeline.from_pretrained. The folder "
        "appears whole or not at all. A checkpoint is exported by the code that its run's config.yaml names: export "
        "only runs that you trust.",
        epilog="example: divot export runs/instruction_tuning --to exported",
    )
    parser.add_argument("run", metavar="RUN", help="finished run, or a checkpoint of any run: RUN/checkpoints/step_...")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="new folder to write")
    parser.add_argument(
        "--components", nargs="+", default=[], metavar="NAME", help="tokenizer, detokenizer, video_llm; default: all"
    )
    parser.add_argument(
        "--keep-adapters", action="store_true", help="do not merge LoRA; write the language model's as a PEFT folder"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file of weights")
    parser.add_argument("--push-to-hub", metavar="NAME", help="also upload the folder to this Hugging Face repository")
    parser.add_argument("--public", action="store_true", help="make a new repository public; without it, private")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot export`, and return the exit status."""
    args = parser().parse_args(list(argv))
    if args.public and args.push_to_hub is None:
        raise UserError("--public has no effect without --push-to-hub; leave it out")
    # save_pretrained imports DeepSpeed, which otherwise prints a warning into our output where there is no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with quick_imports():
        from divot_lightning.evaluation.scores import load_scores, scores_of_run
        from divot_lightning.interop.exporting.export import export_run, require_shard_size
        from divot_lightning.interop.exporting.hub_upload import push_to_hub, require_repository_name

    size = require_shard_size(args.max_shard_size)
    if args.push_to_hub is not None:
        require_repository_name(args.push_to_hub)
    # What `divot evaluate` wrote; a checkpoint was not what it measured.
    scores = [asdict(score) for file in scores_of_run(Path(args.run)) for score in load_scores(file)]
    folder = export_run(
        args.run,
        args.to,
        components=args.components,
        keep_adapters=args.keep_adapters,
        max_shard_size=size,
        scores=scores,
    )
    sys.stdout.write(f"{folder}\n")
    if args.push_to_hub is not None:
        sys.stdout.write(f"{push_to_hub(folder, args.push_to_hub, public=args.public)}\n")
    return 0
