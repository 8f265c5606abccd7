"""`divot ask`: answer questions about videos."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError
from divot_lightning.inference.command_options import (
    add_model_options,
    check_ask_options,
    model_options,
    refuse_idle_top_p,
)
from divot_lightning.inference.prompt_files import HELP as PROMPTS_HELP
from divot_lightning.inference.prompt_files import read_prompts
from divot_lightning.io.command_parser import CommandParser, seed
from divot_lightning.io.output_files import require_writable
from divot_lightning.io.printing import printable
from divot_lightning.io.quick_imports import quick_imports

if TYPE_CHECKING:
    from divot_lightning.inference.pipeline import DivotPipeline
    from divot_lightning.inference.results import Answer


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot ask",
        description="Answer questions about videos or pictures with the video LLM of a run. Without --question it "
        "writes captions; a run that was trained on questions only cannot do this. Words that its text tokenizer does "
        "not know are listed on stderr. Videos are cut into clips as in training.",
    )
    parser.add_argument("run", help="run folder of LLM pretraining or instruction tuning")
    parser.add_argument("video", nargs="*", help="videos or pictures")
    example = '{"video": "a.mp4", "question": "..."}'
    parser.add_argument("--prompts", metavar="FILE", help=PROMPTS_HELP.format(example=example))
    parser.add_argument("--output", metavar="FILE", help="with --prompts: jsonl file to which the answers are added")
    parser.add_argument("--question", action="append", default=[], help="a question; may be given several times")
    parser.add_argument("--together", action="store_true", help="ask about all videos at once, in their order")
    parser.add_argument("--turns", action="store_true", help="ask each question with the answers to those before it")
    parser.add_argument("--max-clips", type=int, default=20, help="largest number of clips of a video")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="largest number of tokens of an answer")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature; 0 takes the most likely token"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the most likely tokens that together have this probability",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the sampling")
    parser.add_argument(
        "--jsonl", action="store_true", help="print one JSON object per answer: video, question, answer, settings"
    )
    add_model_options(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot ask`, and return the exit status."""
    args = parser().parse_args(argv)
    entries = _checked_prompts(args)
    with quick_imports():
        from divot_lightning.inference.pipeline import DivotPipeline

    pipeline = DivotPipeline.from_pretrained(args.run, **model_options(args))
    names = ("max_clips", "max_new_tokens", "temperature", "top_p", "seed")
    options = {name: getattr(args, name) for name in names}
    questions = args.question or [""]
    if entries:
        from divot_lightning.inference.batches import answer_missing

        pairs = [(entry["video"], question) for entry in entries for question in _questions(entry, questions)]
        done, there = answer_missing(pipeline, pairs, Path(args.output), **options)
        sys.stdout.write(f"{args.output}: {done} answers, {there} were there\n")
    videos = [args.video] if args.together and args.video else [[video] for video in args.video]
    alone = len(videos) * len(questions) == 1
    for together in videos:
        for answer in _ask(pipeline, together, questions, options, turns=args.turns):
            sys.stdout.write(_line(" ".join(together), answer, jsonl=args.jsonl, alone=alone) + "\n")
    return 0


def _checked_prompts(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Refuse options that do not fit each other; return the lines of --prompts, none without it."""
    check_ask_options(args.max_clips, args.max_new_tokens, args.temperature, args.top_p)
    refuse_idle_top_p(args.temperature, args.top_p)
    if (args.prompts is None) != (args.output is None) or (args.prompts is None) == (not args.video):
        raise UserError("give either videos, or --prompts FILE and --output FILE, where the answers are written")
    if args.prompts is not None and (args.together or args.turns or args.jsonl):
        raise UserError(
            "--together, --turns and --jsonl belong to videos on the command line; leave them out with --prompts"
        )
    entries = [] if args.prompts is None else read_prompts(args.prompts, "video", question=str)
    if entries and Path(args.output).resolve() == Path(args.prompts).resolve():
        raise UserError(
            f"--output {args.output} is the file of the prompts, to which answers would be added; name another"
        )
    if entries and args.question and all("question" in entry for entry in entries):
        raise UserError(f"--question has no effect: each line of {args.prompts} has its own; leave one of them out")
    if entries:
        require_writable(args.output)
    return entries


def _ask(
    pipeline: "DivotPipeline",
    videos: Sequence[str],
    questions: Sequence[str],
    options: Mapping[str, Any],
    *,
    turns: bool,
) -> "list[Answer]":
    if not turns:
        return pipeline.ask(videos, list(questions), **options)
    features, history = pipeline.encode(videos, max_clips=options["max_clips"]), list[Any]()
    for question in questions:
        history.append(pipeline.ask(features, question, history=history, **options))
    return history


def _questions(entry: Mapping[str, str], questions: Sequence[str]) -> Sequence[str]:
    return [entry["question"]] if "question" in entry else questions


def _line(video: str, answer: "Answer", *, jsonl: bool, alone: bool) -> str:
    question, text = answer.question, answer.text
    if jsonl:
        row = {"video": video, "question": question or None, "answer": text, **answer.settings}
        return json.dumps(row, ensure_ascii=False)
    return text if alone else "\t".join(part for part in (printable(video), question, text) if part)
