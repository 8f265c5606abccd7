"""Which generation heads a command line and its recipes name, read before jsonargparse sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from divot_lightning.errors import UserError

HEAD_OPTIONS = (
    "--model.head",
    "--model.init_args.head",
    "--model.head.class_path",
    "--model.init_args.head.class_path",
)


def head_names(argv: Sequence[str]) -> list[str]:
    """Return the heads named by `argv` and by the recipes in it.

    Args:
        argv: Options; `--config` is followed by the path of a file.

    Returns:
        Short names or class paths, as written.

    Example:
        >>> head_names(["--model.head", "gmm", "--run=x"])
        ['gmm']
    """
    names: list[str] = []
    for position, word in enumerate(argv):
        option, equals, value = word.partition("=")
        value = value if equals else next(iter(argv[position + 1 : position + 2]), "")
        if option in HEAD_OPTIONS:
            names.append(value)
        elif option in ("--config", "-c"):
            names += _heads_of_recipe(Path(value))
    # null switches a head off, and {...} is a whole head that the parser reads
    return [name for name in names if name and name not in ("null", "None") and not name.startswith("{")]


def read_recipe(recipe: Path) -> dict[str, Any]:
    """Read a recipe as nested dictionaries.

    Raises:
        UserError: The file is no YAML, or holds no settings.
    """
    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        where = str(getattr(error, "problem_mark", "")).strip()
        reason = getattr(error, "problem", None) or error
        raise UserError(f"recipe {recipe} is no YAML: {reason}\n{where}") from error
    if not isinstance(settings, dict):
        raise UserError(f"recipe {recipe} holds no settings but {settings!r:.60}; a recipe is lines of key: value")
    return settings


def _heads_of_recipe(recipe: Path) -> list[str]:
    head = _get(read_recipe(recipe), "model", "init_args", "head")
    name = _get(head, "class_path") if isinstance(head, dict) else head
    return [name] if isinstance(name, str) else []


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
