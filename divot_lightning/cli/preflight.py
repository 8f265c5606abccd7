"""`divot preflight`: estimate what a recipe needs, before anything is allocated."""

import sys

from divot_lightning.errors import UserError
from divot_lightning.io.quick_imports import quick_imports
from divot_lightning.training.training_args import resolve_recipes, wants_help

HELP = """usage: divot preflight --config RECIPE [--key value ...]

Estimate what a recipe needs, before it runs: parameters by module, memory per process, size of checkpoints, batch
sizes, data, disk space. Options are those of `divot fit`; they may describe another machine than this one:

  --trainer.devices N --trainer.num_nodes M --trainer.strategy divot_zero3 --trainer.precision bf16-mixed

Weights are neither read nor downloaded: only config.json of pretrained models is needed. The data are opened and the
first batch is decoded, to find the memory that a step keeps for its backward pass.
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `divot preflight`; the exit status is 1 if the disk is too small."""
    if wants_help(argv):
        sys.stdout.write(HELP)
        return 0
    if not argv:
        raise UserError("which recipe? usage: divot preflight --config RECIPE [--key value ...]")

    with quick_imports():
        from divot_lightning.preflight.report import preflight

    return preflight(resolve_recipes(argv))
