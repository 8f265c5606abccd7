"""`divot generate`: generate clips from text."""

import argparse
import json
import sys
from collections.abc import Sequence

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.inference.clip_requests import ClipOpening, ClipRequest
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
from divot_lightning.io.quick_imports import quick_imports


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot generate",
        description="Generate clips from text with the video LLM of a run, and decode them with its "
        "de-tokenizer or another one. All settings are written beside each clip, as json.",
    )
    parser.add_argument("run", help="run folder of LLM pretraining or instruction tuning")
    parser.add_argument("--prompt", action="append", default=[], help="text of a clip; may be given several times")
    example = '{"prompt": "...", "seed": 1}'
    parser.add_argument("--prompts", metavar="FILE", help=PROMPTS_HELP.format(example=example))
    parser.add_argument(
        "--output",
        required=True,
        help="file ending in .mp4, .gif, ...; several clips are "
        "numbered. {prompt}.mp4 names each clip by its text and number, as VBench reads them",
    )
    parser.add_argument("--num", type=int, default=1, help="clips per prompt")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all sampling")
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature of the features")
    parser.add_argument("--head.NAME", dest="head", metavar="VALUE", help=HEAD_HELP)
    parser.add_argument(
        "--request",
        metavar="TEXT",
        help='words that ask for a clip, with {} for the prompt, such as "Generate a video of {}" (default: those of '
        "the run)",
    )
    parser.add_argument(
        "--open-clip",
        action="store_true",
        help="let the model write text until it begins the clip by itself, as in the released code",
    )
    for name, kind, default, what in (
        ("text-temperature", float, 0.7, "sampling temperature of the words before the clip; 0 takes the most likely"),
        ("top-p", float, 0.5, "words are sampled from the most likely ones that together have this probability"),
        ("max-new-tokens", int, 256, "largest number of tokens before the clip"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"with --open-clip: {what} (default: {default})")
    parser.add_argument("--jsonl", action="store_true", help="print one JSON object per clip: prompt, file")
    add_decoding_options(parser)
    add_model_options(parser)
    return parser


def _request(args: argparse.Namespace) -> ClipRequest:
    given = {name: getattr(args, name) for name in ("text_temperature", "top_p", "max_new_tokens")}
    stated = {name: value for name, value in given.items() if value is not None}
    if stated and not args.open_clip:
        raise UserError(f"--{next(iter(stated)).replace('_', '-')} has no effect without --open-clip")
    return ClipRequest(args.request, ClipOpening(**stated) if args.open_clip else None)


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot generate`, and return the exit status."""
    head, words = split_head_options(argv)
    args = parser().parse_args(words)
    require_at_least(1, "--", num=args.num)
    require_at_least(0, "--", temperature=args.temperature)
    if not all(prompt.strip() for prompt in args.prompt):
        raise UserError("--prompt is empty; describe the clip in words")
    if bool(args.prompt) == (args.prompts is not None):
        raise UserError("give either --prompt TEXT, or --prompts FILE with one per line")
    request = _request(args)
    entries = [] if args.prompts is None else read_prompts(args.prompts, "prompt", seed=int)
    with quick_imports():
        from divot_lightning.inference.batches import ClipSampling, generate_files, generate_missing
        from divot_lightning.inference.pipeline import DivotPipeline
        from divot_lightning.inference.pipeline_options import Decoding
        from divot_lightning.inference.results import output_paths

    first, count = (args.prompt or [entries[0]["prompt"]])[0], len(args.prompt or entries)
    require_writable(output_paths(args.output, args.num * count, first)[0])
    pipeline = DivotPipeline.from_pretrained(args.run, args.detokenizer, head=head, **model_options(args))
    how = ClipSampling(args.num, request, args.temperature, args.seed, Decoding(**decoding_options(args)))
    if entries:
        generated = generate_missing(pipeline, entries, args.output, how)
    else:
        generated = generate_files(pipeline, args.prompt, args.output, how)
    for text, path in generated:
        row = json.dumps({"prompt": text, "file": str(path)}, ensure_ascii=False)
        sys.stdout.write(f"{row if args.jsonl else path}\n")
    return 0
