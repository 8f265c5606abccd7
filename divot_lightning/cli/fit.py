"""`divot fit`: train one stage from a recipe."""

import sys
import textwrap

from divot_lightning.errors import UserError
from divot_lightning.io.quick_imports import quick_imports
from divot_lightning.training.recipe_files import recipes_dir, stage_recipe_names
from divot_lightning.training.training_args import resolve_recipes, wants_help, with_full_help

HELP = """usage: divot fit --config RECIPE [--key value ...]

Train one stage. RECIPE is a YAML file or the name of a shipped recipe. Options win over the recipe.

  --config RECIPE               may be given several times; later recipes win
  --run FOLDER                  where everything is written; must not hold another run
  --model.KEY, --data.KEY       settings of the stage and of its data
  --model.head NAME             the generation head: mse, diffusion, gmm, ... (see `divot heads`)
  --trainer.max_steps N         any setting of Lightning's Trainer: devices, precision, strategy ...
  --trainer.logger NAME         wandb or mlflow, besides metrics.csv and tensorboard/
  --checkpoint.every_steps N    steps between two checkpoints; --checkpoint.keep_all true keeps all of them
  --seed_everything N           seed of all random choices
  --print_config                print all settings, with defaults, and stop
  --help_all                    show every option; --model.help CLASS shows those of one class

A run folder holds config.yaml, metrics.csv, tensorboard/, checkpoints/ and the trained components.
To continue a stopped run: divot resume RUN
"""


def main(argv: list[str]) -> int:
    """Run the command with the words after `divot fit`, and return the exit status."""
    if wants_help(argv):
        names = textwrap.fill(", ".join(stage_recipe_names()), 100, initial_indent="  ", subsequent_indent="  ")
        sys.stdout.write(f"{HELP}\nrecipes in {recipes_dir()}:\n{names}\n")
        return 0
    if not argv:
        toy = [name for name in stage_recipe_names() if name.startswith("toy/")]
        raise UserError(
            f"which recipe? usage: divot fit --config RECIPE\nshipped: {', '.join(toy)}\n"
            "and the paper's: see `divot fit --help`"
        )
    argv = with_full_help(resolve_recipes(argv))

    with quick_imports():
        from divot_lightning.training.runs import fit

    return fit(argv)
