"""`divot ask`: answer questions about videos."""

import argparse
import json
import sys
from collections.abc import Sequence

from divot_lightning.errors import UserError
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
    parser.add_argument("video", nargs="+", help="videos or pictures")
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
    """Run the command.

    Args:
        argv: The words after `divot ask`.

    Returns:
        The exit status.
    """
    args = parser().parse_args(argv)
    if args.max_clips < 1:
        raise UserError(f"--max-clips is {args.max_clips}; it must be at least 1")
    from divot_lightning.inference.ask import QuestionAnswerer

    answerer = QuestionAnswerer.from_run(args.run, template=args.template, device=args.device)
    questions = args.question or [""]
    alone = len(args.video) * len(questions) == 1
    for video in args.video:
        answers = answerer.answer_questions(video, questions, max_clips=args.max_clips)
        for question, text in zip(questions, answers, strict=True):
            sys.stdout.write(_line(video, question, text, jsonl=args.jsonl, alone=alone) + "\n")
    return 0


def _line(video: str, question: str, answer: str, *, jsonl: bool, alone: bool) -> str:
    if jsonl:
        return json.dumps({"video": video, "question": question or None, "answer": answer}, ensure_ascii=False)
    return answer if alone else "\t".join(part for part in (printable(video), question, answer) if part)
