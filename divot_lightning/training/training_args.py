"""The words after `divot fit`, `validate`, `test` and `resume`, before torch is imported."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.parts.registries.recipe_parts import read_recipe
from divot_lightning.training.recipe_files import find_recipe
from divot_lightning.training.run_folder import CONFIG, require_run

RECIPE_OPTIONS = ("--config", "-c")


def resolve_recipes(argv: list[str]) -> list[str]:
    """Replace each `--config NAME` by the file behind it.

    Args:
        argv: Options as typed; NAME is a path or a shipped recipe such as `toy/llm_pretraining`.

    Raises:
        UserError: NAME is missing or is neither.
    """
    resolved: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in RECIPE_OPTIONS:
            resolved.append(word)
            continue
        name = value if equals else next(words, None)
        if not name:
            raise UserError("--config needs a recipe: a path, or a shipped one as toy/llm_pretraining")
        resolved += ["--config", str(find_recipe(name))]
    return resolved


def split_run(argv: list[str], command: str) -> tuple[Path, list[str]]:
    """Take the leading run folder off `argv`; it must hold a run.

    Raises:
        UserError: There is no leading folder, or no run in it.
    """
    if not argv or argv[0].startswith("-"):
        raise UserError(f"which run? usage: divot {command} RUN [--key value ...]")
    run = Path(argv[0])
    require_run(run)
    return run, argv[1:]


def find_run_folder(argv: list[str]) -> tuple[Path, list[str]]:
    """Find the run folder of `divot resume`: the leading word, the last `--run`, or the last recipe that names one.

    Args:
        argv: Options as typed.

    Returns:
        The folder, which need not exist, and the other words.

    Raises:
        UserError: Nothing names a folder.
    """
    if argv and not argv[0].startswith("-"):
        return Path(argv[0]), argv[1:]
    named: list[str | None] = list(_values(argv, ("--run",)))
    if not named:
        named = [read_recipe(find_recipe(name)).get("run") for name in _values(argv, RECIPE_OPTIONS)]
    folder = next((name for name in reversed(named) if name), None)
    if folder is None:
        raise UserError("which run? usage: divot resume RUN [--config RECIPE] [--key value ...]")
    return Path(folder), argv


def names_recipe(argv: list[str]) -> bool:
    """Return whether `--config` is among the words."""
    return any(word.partition("=")[0] in RECIPE_OPTIONS for word in argv)


def _values(argv: list[str], options: tuple[str, ...]) -> Iterator[str]:
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        if option in options:
            yield value if equals else following


def run_args(run: Path, overrides: list[str]) -> list[str]:
    """Return the options that repeat a run: its `config.yaml`, then the overrides, then the folder itself."""
    return ["--config", str(run / CONFIG), *resolve_recipes(overrides), "--run", str(run)]


def wants_help(argv: list[str]) -> bool:
    """Return whether the short help was asked for."""
    return "-h" in argv or "--help" in argv


def with_full_help(argv: list[str]) -> list[str]:
    """Turn `--help_all` into jsonargparse's own `--help`."""
    return ["--help" if word == "--help_all" else word for word in argv]
