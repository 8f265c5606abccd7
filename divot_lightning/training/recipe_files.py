"""The recipes that come with the package: their folder, their names, and finding one."""

import difflib
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.io.renamed import RECIPES


def recipes_dir() -> Path:
    """Return the folder of the shipped recipes: `divot_lightning/recipes` when installed, `recipes/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, such as `toy/tokenizer_pretraining`, sorted."""
    folder = recipes_dir()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def stage_recipe_names() -> list[str]:
    """Return the names of the shipped recipes that `divot fit` takes: the toy's first, then the others, each sorted."""
    other = ("ablations/", "evaluation/", "experiments/")
    names = [name for name in recipe_names() if not name.startswith(other)]
    return sorted(names, key=lambda name: (not name.startswith("toy/"), name))


def find_recipe(name: str) -> Path:
    """Return the file behind `--config name`: a path as it stands, or the name of a shipped recipe.

    Args:
        name: A path, or a shipped recipe as `toy/llm_pretraining`, with or without `recipes/` and `.yaml`.

    Raises:
        UserError: No such file and no such recipe; the message has the nearest names, or the new name.
    """
    path = Path(name)
    if path.is_file():
        return path
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short in recipe_names():
        return recipes_dir() / f"{short}.yaml"
    if short in RECIPES:
        raise UserError(f"recipe {name!r} is now {RECIPES[short]!r}: it was renamed.")
    near = difflib.get_close_matches(short, recipe_names(), n=3, cutoff=0.4)
    raise UserError(
        f"recipe {name!r} is neither a file nor a shipped recipe.\n"
        f"nearest: {', '.join(near) if near else 'none'}\n"
        f"shipped recipes are in {recipes_dir()}"
    )
