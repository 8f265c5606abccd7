"""Options that the commands for trained runs share. No torch in here."""

import argparse
from typing import Any


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add how models are loaded: template, device and dtype; `model_options` reads them."""
    parser.add_argument(
        "--template", help="pretraining, instruction, chat, or a text with {} for the prompt (default: that of the run)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32, the LLM as it is stored)")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_model_options` for `DivotPipeline.from_pretrained`."""
    return {"template": args.template, "device": args.device, "dtype": args.dtype}


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add how clips are decoded: steps, guidance and sampler; `decoding_options` reads them."""
    parser.add_argument("--detokenizer", help="run folder of another de-tokenizer, such as an adapted one")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the de-tokenizer's)")
    parser.add_argument("--guidance", type=float, help="scale of the guidance; 1 is none (default: the de-tokenizer's)")
    parser.add_argument(
        "--sampler", metavar="NAME", help="dpm_solver, unipc, or ddim, of a flow euler (default: the de-tokenizer's)"
    )


def decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_decoding_options` for `divot_lightning.inference.pipeline.Decoding`."""
    return {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler}
