"""`divot quickstart`: run the recipe experiments/quickstart: every stage on toy data, all heads, a report."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divot_lightning.cli.ablate import dry_run, run
from divot_lightning.errors import UserError, did_you_mean
from divot_lightning.io.command_parser import CommandParser

MAIN_HEAD = "gmm"
"""The paper's head. Instruction tuning, de-tokenizer adaptation and the random-init control are trained with it."""


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = CommandParser(
        prog="divot quickstart",
        description="Make toy data, train every stage with the recipes in toy/, compare the generation heads and write "
        "FOLDER/report.html. After a stop, the same command continues. The steps are those of the recipe "
        "experiments/quickstart, which `divot ablate` runs as well.",
    )
    parser.add_argument(
        "--folder", help="where everything is written (default: runs/quickstart; with --fast runs/quickstart_fast)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="train a few steps per stage, to check that everything runs"
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        metavar="HEAD",
        help="generation heads to compare: short names of heads, or variants that ablations/heads names; gmm must be "
        "one of them (default: mse diffusion gmm gmm_clip)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        help="processes that run side by side, with one thread each; GPUs are divided among them",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all settings, print what is left and its cost, and stop"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot quickstart`, and return the exit status."""
    from divot_lightning.experiments.plan.recipe import load_recipe

    args = parser().parse_args(argv)
    name = "quickstart_fast" if args.fast else "quickstart"
    changes = heads_as_variants(f"experiments/{name}", args.heads) if args.heads is not None else {}
    recipe = load_recipe(f"experiments/{name}", changes)
    folder = Path(args.folder or f"runs/{name}")
    return dry_run(recipe, folder, args.jobs) if args.dry_run else run(recipe, folder, args.jobs)


def heads_as_variants(recipe: str, heads: Sequence[str]) -> dict[str, Any]:
    """Return the key `vary` with these heads, with the options of the shipped recipes that name them.

    Raises:
        UserError: A head is not installed, or the head that the later stages train with is missing.
    """
    from divot_lightning.experiments.plan.recipe import load_recipe
    from divot_lightning.parts.registries.kinds import HEADS

    known = {**load_recipe("ablations/heads").vary["head"], **load_recipe(recipe).vary["head"]}
    installed = {head.name for head in HEADS.installed()}
    for name in heads:
        if name not in known.keys() | installed:
            raise UserError(
                f"--heads {name} is neither the short name of a head nor a variant in ablations/heads."
                f"{did_you_mean(name, known.keys() | installed)}\n"
                f"heads: {', '.join(sorted(installed))}\nvariants: {', '.join(sorted(known.keys() - installed))}"
            )
    variants = {name: known.get(name, {"llm": {"model.head": name}}) for name in heads}
    for variant in variants.values():
        HEADS.resolve(variant["llm"]["model.head"])
    if MAIN_HEAD not in heads:
        raise UserError(f"--heads {' '.join(heads)} lacks {MAIN_HEAD}, which the later stages train with; add it")
    return {"vary": {"head": variants}}
