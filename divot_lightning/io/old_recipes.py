"""Old names in recipes and in a run's `config.yaml`: found, and refused with the new ones."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.io.renamed import DETOKENIZER_PARTS, OUR_PACKAGES, SETTINGS, new_class_path

MAX_LINES = 2
"""Renamed names that a message gives a line each; the others share one more."""


def require_current_names(settings: Mapping[str, Any], file: str | Path) -> None:
    """Refuse settings that hold names of an earlier version.

    Args:
        settings: Of a recipe or of a run's `config.yaml`, nested as YAML has them.
        file: Where they were read, for the message.

    Raises:
        UserError: With every old name and its new one.
    """
    found = [*_renamed(settings), *_old_optimizer(settings)]
    if not found:
        return
    told = [f"{name} is now {new}" for name, new in found]
    lines = told[:MAX_LINES] + (["; ".join(told[MAX_LINES:])] if told[MAX_LINES:] else [])
    advice = "Write the new names into that file; their values stay as they are."
    raise UserError("\n".join([f"{file} was written for an earlier version:", *lines, advice]))


def _old_optimizer(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the optimizer of one of our stages if it has the form of before optimizers were parts."""
    model = settings.get("model")
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    old = arguments.get("optimizer") if isinstance(arguments, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(old, Mapping) or {"class_path", "init_args"} & set(old):
        return
    if "name" in old or str(model.get("class_path", "")).partition(".")[0] in OUR_PACKAGES:
        name = old.get("name", "adamw")
        yield f"optimizer: {{name: {name}, ...}}", f"optimizer: {{class_path: {name}, init_args: {{...}}}}"


def _renamed(settings: Any, path: tuple[str, ...] = (), ours: bool = True) -> Iterator[tuple[str, str]]:
    """Yield old names with their new ones; settings of a stranger's class are the stranger's."""
    if isinstance(settings, list):
        for index, entry in enumerate(settings):
            yield from _renamed(entry, (*path, str(index)), ours)
    if not isinstance(settings, Mapping):
        return
    if isinstance(named := settings.get("class_path"), str):
        ours = named.partition(".")[0] in OUR_PACKAGES
        if current := new_class_path(named):
            yield ".".join([*path, f"class_path: {named}"]), current
    for key, value in settings.items():
        inner = (*path, *str(key).split("."))
        if ours:
            yield from _renamed_setting(inner, value)
        yield from _renamed(value, inner, ours)


def _renamed_setting(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, str]]:
    """Yield the new name of one setting if it is an old one, and the new form of a part whose form is old."""
    key, spelt = ".".join(path), ".".join(word for word in path if word != "init_args")
    for names in (SETTINGS, DETOKENIZER_PARTS):
        if spelt in names:
            yield key, names[spelt]
    if spelt == "model.tokenizer.vision" and path[-1] == "vision" and _is_settings_alone(value):
        written = ", ".join(f"{name}: {json.dumps(setting)}" for name, setting in value.items())
        yield f"{key}: {{...}}", f"{{class_path: clip, init_args: {{{written}}}}}"
    if spelt == "model.detokenizer.denoiser" and path[-1] == "denoiser" and _is_settings_alone(value):
        yield key, "denoiser: video_dit, with its settings under init_args"


def _is_settings_alone(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"class_path", "init_args", "diffusers_class"} & set(value)
