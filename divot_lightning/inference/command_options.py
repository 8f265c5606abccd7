"""Options that the commands for trained runs share. No torch in here."""

import argparse
from collections.abc import Sequence
from typing import Any

from divot_lightning.errors import UserError, require_at_least

PREFIX = "--head."
HEAD_HELP = "sampling setting of the run's head, such as --head.variance_scale 0.5; a wrong NAME lists all settings"


def split_head_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the sampling settings of a head from the other words of a command.

    Args:
        words: The words of the command line.

    Returns:
        The values by name, as strings, and the other words.

    Raises:
        UserError: A setting has no value or no name, or is given twice.

    >>> split_head_options(["run", "--head.steps", "20", "--num", "2", "--head.solver=euler"])
    ({'steps': '20', 'solver': 'euler'}, ['run', '--num', '2'])
    """
    settings: dict[str, str] = {}
    others: list[str] = []
    left = iter(words)
    for word in left:
        if not word.startswith(PREFIX):
            others.append(word)
            continue
        name, equals, value = word.removeprefix(PREFIX).partition("=")
        given = value if equals else next(left, None)
        if not name or given is None:
            raise UserError(f"{word} lacks a {'value' if name else 'name'}; write {PREFIX}NAME VALUE")
        if name in settings:
            raise UserError(f"{PREFIX}{name} is given twice, as {settings[name]} and {given}")
        settings[name] = given
    return settings, others


def add_model_options(parser: argparse.ArgumentParser, *, prompts: bool = True) -> None:
    """Add how models are loaded: device, dtype, and the template if there are prompts; `model_options` reads them."""
    if prompts:
        parser.add_argument(
            "--template",
            help="pretraining, instruction, chat, or a text with {} for the prompt (default: that of the run)",
        )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32; the LLM as it is stored)")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_model_options` for `DivotPipeline.from_pretrained`."""
    return {name: getattr(args, name) for name in ("template", "device", "dtype") if name in args}


def check_top_p(top_p: float, where: str = "") -> None:
    """Refuse a probability that the most likely tokens cannot reach together."""
    if not 0 < top_p <= 1:
        raise UserError(f"{where}top_p is {top_p}; it must be above 0 and at most 1")


def check_ask_options(max_clips: int, max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Refuse options of `DivotPipeline.ask` that are out of range."""
    require_at_least(1, max_clips=max_clips, max_new_tokens=max_new_tokens)
    require_at_least(0, temperature=temperature)
    check_top_p(top_p)


def refuse_idle_top_p(temperature: float | None, top_p: float) -> None:
    """Refuse to choose among the most likely tokens where the most likely one is taken."""
    if top_p < 1 and not temperature:
        raise UserError(f"top_p is {top_p}, which has no effect at temperature 0\nset a temperature, or leave it out")


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add how clips are decoded: steps, guidance and sampler; `decoding_options` reads them."""
    parser.add_argument(
        "--detokenizer", help="run folder of the de-tokenizer, such as an adapted one (default: the one that RUN names)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the de-tokenizer's)")
    parser.add_argument("--guidance", type=float, help="scale of the guidance; 1 is none (default: the de-tokenizer's)")
    parser.add_argument(
        "--sampler", metavar="NAME", help="dpm_solver, unipc, ddim, or for a flow euler (default: the de-tokenizer's)"
    )


def decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_decoding_options` for `divot_lightning.inference.pipeline_options.Decoding`."""
    return {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler}
