"""`divot story`: tell a story of sentences and clips."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.inference.command_options import (
    HEAD_HELP,
    add_decoding_options,
    add_model_options,
    decoding_options,
    model_options,
    split_head_options,
)
from divot_lightning.inference.prompt_files import HELP as PROMPTS_HELP
from divot_lightning.inference.prompt_files import read_prompts
from divot_lightning.io.command_parser import CommandParser, seed
from divot_lightning.io.output_files import require_writable
from divot_lightning.io.printing import printable
from divot_lightning.io.quick_imports import quick_imports


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot story",
        description="Tell a story with the video LLM of a run that was trained on the task story: it writes a "
        "sentence, begins a clip, generates it, reads it, and continues. Writes clip-0.mp4, ... and story.json.",
    )
    parser.add_argument("run", help="run folder of instruction tuning on stories")
    parser.add_argument("instruction", nargs="?", help="what the story is about")
    parser.add_argument(
        "--output", required=True, help="folder of the story; with --prompts, folder with one folder for each line"
    )
    example = '{"instruction": "...", "seed": 1}'
    parser.add_argument("--prompts", metavar="FILE", help=PROMPTS_HELP.format(example=example))
    parser.add_argument("--num-clips", type=int, default=3, help="largest number of clips")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all sampling")
    parser.add_argument("--head.NAME", dest="head", metavar="VALUE", help=HEAD_HELP)
    parser.add_argument("--jsonl", action="store_true", help="print one JSON object per story, as in story.json")
    add_decoding_options(parser)
    add_model_options(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot story`, and return the exit status."""
    head, words = split_head_options(argv)
    args = parser().parse_args(words)
    require_at_least(1, "--", **{"num-clips": args.num_clips})
    if (args.instruction is None) == (args.prompts is None):
        raise UserError("give either an instruction, or --prompts FILE with one per line")
    entries, folders = [{"instruction": args.instruction}], [Path(args.output)]
    if args.prompts is not None:
        entries = read_prompts(args.prompts, "instruction", seed=int)
        folders = [Path(args.output) / str(number) for number in range(len(entries))]
    with quick_imports():
        from divot_lightning.inference.batches import tell_missing
        from divot_lightning.inference.pipeline import DivotPipeline
        from divot_lightning.inference.pipeline_options import Decoding
        from divot_lightning.inference.results import STORY_FILE

    require_writable(folders[0] / STORY_FILE)
    pipeline = DivotPipeline.from_pretrained(args.run, args.detokenizer, head=head, **model_options(args))
    decoding = Decoding(**decoding_options(args))
    for folder, story in tell_missing(pipeline, entries, folders, args.num_clips, args.seed, decoding):
        sys.stdout.write(json.dumps(story, ensure_ascii=False) + "\n" if args.jsonl else _lines(folder, story))
    return 0


def _lines(folder: Path, story: dict[str, Any]) -> str:
    """Return a line per sentence: the text, and the file of its clip."""
    files = [str(folder / part["file"]) if part["file"] else "" for part in story["parts"]]
    rows = zip(story["parts"], files, strict=True)
    return "".join(f"{printable(part['text'])}\t{file}".rstrip("\t") + "\n" for part, file in rows)
