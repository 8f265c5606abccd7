"""Replace the short names of parts in recipes and on command lines by class paths, before anything is parsed.

A recipe says `head: gmm`, or `head: {class_path: gmm, init_args: {...}}`. The parser reads class paths only, and only
class paths are recorded, so the parser does not need to know short names.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml

from divot_lightning.errors import UserError, did_you_mean
from divot_lightning.io.old_recipes import require_current_names
from divot_lightning.parts.registries.kinds import REGISTRIES, TASKS


class Names(Protocol):
    """Short names of one kind: a registry, or those of loggers."""

    def resolve(self, name: str) -> str:
        """Return the class path behind a name; raise a `UserError` if there is none."""


class LoggerNames:
    """Short names of Lightning's loggers. They are no parts: nothing that is trained depends on them."""

    CLASSES: ClassVar = {
        "wandb": "lightning.pytorch.loggers.WandbLogger",
        "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
    }

    def resolve(self, name: str) -> str:
        """Return the class path of a logger; class names and class paths stay, and so do `true` and `false`.

        Args:
            name: A name, or several as a command line gives them: `[wandb, mlflow]`.

        Raises:
            UserError: There is no such logger.
        """
        if name.startswith("["):
            return re.sub(r"[\w.]+", lambda found: self.resolve(found[0]), name)
        if "." in name or name.endswith("Logger") or name.lower() in ("true", "false"):
            return name
        if name not in self.CLASSES:
            raise UserError(
                f"trainer.logger: there is no logger {name!r}; allowed: {', '.join(self.CLASSES)}, "
                f"or a class path as lightning.pytorch.loggers.CometLogger.{did_you_mean(name, self.CLASSES)}"
            )
        return self.CLASSES[name]


LOGGER = "logger"

# Tasks are the keys of a mapping, with weights; the data module finds them.
_BY_KEY: dict[str, Names] = {
    LOGGER: LoggerNames(),
    **{one.key: one for one in REGISTRIES.values() if one is not TASKS},
}


def expand_recipe(settings: Any) -> Any:
    """Replace the short name of each part in a recipe by its class path.

    Args:
        settings: Settings of a recipe, nested as in YAML.

    Returns:
        New settings; the given ones stay as they are.

    Raises:
        UserError: A part is not installed, is declared twice or is broken.

    >>> expand_recipe({"model": {"head": "gmm"}})
    {'model': {'head': {'class_path': 'divot_heads.gmm.GMMHead'}}}
    """
    if isinstance(settings, list):
        return [expand_recipe(entry) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    return {key: _expand_part(key, expand_recipe(value)) for key, value in settings.items()}


def expand_words(words: Sequence[str]) -> list[str]:
    """Replace the short name of each part on a command line by its class path.

    Args:
        words: Options as typed, `--key value` or `--key=value`.

    Returns:
        The words, with class paths.

    Raises:
        UserError: See `expand_recipe`.

    >>> expand_words(["--model.head", "gmm", "--model.head.num_components=4"])
    ['--model.head', 'divot_heads.gmm.GMMHead', '--model.head.num_components=4']
    """
    expanded: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        registry = _registry_of(expanded[-1] if expanded else "") if not word.startswith("-") else None
        if registry is not None:
            expanded.append(_expand_name(registry, word))
        elif equals and (registry := _registry_of(option)) is not None:
            expanded.append(f"{option}={_expand_name(registry, value)}")
        else:
            expanded.append(word)
    return expanded


def read_recipe(recipe: Path) -> dict[str, Any]:
    """Read a recipe into nested dictionaries, without changing anything.

    Raises:
        UserError: The file is no YAML, holds no settings, or holds names of an earlier version.
    """
    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        where = str(getattr(error, "problem_mark", "")).strip()
        reason = getattr(error, "problem", None) or error
        raise UserError(f"recipe {recipe} is no YAML: {reason}\n{where}") from error
    if not isinstance(settings, dict):
        raise UserError(f"recipe {recipe} holds no settings but {settings!r:.60}; a recipe is lines of key: value")
    require_current_names(settings, recipe)
    return settings


def _expand_part(key: str, value: Any) -> Any:
    if key == LOGGER and isinstance(value, list):
        return [_expand_part(key, entry) for entry in value]
    registry = _BY_KEY.get(key)
    if registry is None:
        return value
    if isinstance(value, str) and not _is_null(value):
        return {"class_path": registry.resolve(value)}
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        return {**value, "class_path": registry.resolve(value["class_path"])}
    return value


def _registry_of(option: str) -> Names | None:
    """Return the names of the part or logger that an option sets; None if it sets neither."""
    if not option.startswith("--"):
        return None
    keys = option.removesuffix("+").removesuffix(".class_path")  # `--trainer.logger+` adds to a list
    return _BY_KEY.get(keys.removeprefix("--").rpartition(".")[2])


def _expand_name(registry: Names, value: str) -> str:
    # `null` switches a part off, and `{...}` is a whole part or logger, which the parser reads.
    return value if _is_null(value) or "{" in value else registry.resolve(value)


def _is_null(value: str) -> bool:
    return value in ("", "null", "None")
