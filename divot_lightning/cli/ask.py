"""`divot ask`: answer questions about videos."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.inference.prompt_files import HELP as PROMPTS_HELP
from divot_lightning.inference.prompt_files import read_prompts
from divot_lightning.io.printing import printable


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="divot ask",
        description="Answer questions about videos or pictures with the video LLM of a run. Without --question it "
        "writes captions, which a run trained on questions only cannot do. Words that its text tokenizer does not "
        "know are listed on stderr. Videos are cut into clips as in training.",
    )
    parser.add_argument("run", help="run folder of LLM pretraining or instruction tuning")
    parser.add_argument("video", nargs="*", help="videos or pictures")
    example = '{"video": "a.mp4", "question": "..."}'
    parser.add_argument("--prompts", metavar="FILE", help=PROMPTS_HELP.format(example=example))
    parser.add_argument("--output", metavar="FILE", help="with --prompts: jsonl file to which the answers are added")
    parser.add_argument("--question", action="append", default=[], help="a question; may be given several times")
    parser.add_argument(
        "--template", help="pretraining, instruction, chat, or a text with {} for the prompt (default: that of the run)"
    )
    parser.add_argument("--max-clips", type=int, default=20, help="largest number of clips of a video (default: 20)")
    parser.add_argument(
        "--jsonl", action="store_true", help="print one JSON object per answer: video, question, answer"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot ask`, and return the exit status."""
    args = parser().parse_args(argv)
    if args.max_clips < 1:
        raise UserError(f"--max-clips is {args.max_clips}; it must be at least 1")
    if (args.prompts is None) != (args.output is None) or (args.prompts is None) == (not args.video):
        raise UserError("give either videos, or --prompts FILE and --output FILE, where the answers are written")
    entries = [] if args.prompts is None else read_prompts(args.prompts, "video", question=str)
    from divot_lightning.inference.pipeline import DivotPipeline

    pipeline = DivotPipeline.from_pretrained(args.run, template=args.template, device=args.device)
    questions = args.question or [""]
    if entries:
        from divot_lightning.inference.batches import answer_missing

        pairs = [(entry["video"], question) for entry in entries for question in _questions(entry, questions)]
        done, there = answer_missing(pipeline, pairs, Path(args.output), max_clips=args.max_clips)
        sys.stdout.write(f"{args.output}: {done} answers, {there} were there\n")
    alone = len(args.video) * len(questions) == 1
    for video in args.video:
        for answer in pipeline.ask(video, questions, max_clips=args.max_clips):
            line = _line(video, answer.question, answer.text, jsonl=args.jsonl, alone=alone)
            sys.stdout.write(line + "\n")
    return 0


def _questions(entry: Mapping[str, str], questions: Sequence[str]) -> Sequence[str]:
    return [entry["question"]] if "question" in entry else questions


def _line(video: str, question: str, answer: str, *, jsonl: bool, alone: bool) -> str:
    if jsonl:
        return json.dumps({"video": video, "question": question or None, "answer": answer}, ensure_ascii=False)
    return answer if alone else "\t".join(part for part in (printable(video), question, answer) if part)
