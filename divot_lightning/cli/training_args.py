"""The words after `divot fit`, `validate`, `test` and `resume`, before torch is imported."""

from pathlib import Path

from divot_lightning.cli.run_folder import CONFIG, require_run
from divot_lightning.errors import UserError
from divot_lightning.recipe_files import find_recipe


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
        if option not in ("--config", "-c"):
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


def run_args(run: Path, overrides: list[str]) -> list[str]:
    """Give the options that repeat a run: its `config.yaml`, then the overrides, then the folder itself."""
    return ["--config", str(run / CONFIG), *resolve_recipes(overrides), "--run", str(run)]


def wants_help(argv: list[str]) -> bool:
    """Tell whether the short help was asked for."""
    return "-h" in argv or "--help" in argv


def with_full_help(argv: list[str]) -> list[str]:
    """Turn `--help_all` into jsonargparse's own `--help`."""
    return ["--help" if word == "--help_all" else word for word in argv]
