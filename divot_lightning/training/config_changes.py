"""Changed settings of a run, spelt as on the command line, and the run's `config.yaml`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from divot_lightning.errors import shortened
from divot_lightning.io.files import write_atomically
from divot_lightning.parts.registries.recipe_parts import read_recipe
from divot_lightning.training.run_folder import CONFIG

UNCOUNTED = ("run",)
"""Settings that have no influence on training, and are not compared."""

LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time")
"""Settings that a finished run can be trained for longer with."""

MAX_VALUE_CHARACTERS = 80


class Change(NamedTuple):
    """A setting that differs.

    Attributes:
        key: As on the command line: `model.optimizer.lr`.
        old: Its value in the run so far, None if it had none.
        new: Its value now.
    """

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_value(self.old)} -> {_value(self.new)}"


def changed_settings(old: str, new: str) -> list[Change]:
    """Compare two texts of `config.yaml`.

    Example:
        >>> old, new = "model: {init_args: {lr: 1.0}}", "model: {init_args: {lr: 0.5}}"
        >>> [str(change) for change in changed_settings(old, new)]
        ['model.lr: 1.0 -> 0.5']
    """
    before, after = (flat_settings(yaml.safe_load(text) or {}) for text in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    differing = [key for key in keys if before.get(key) != after.get(key) and key.split(".")[0] not in UNCOUNTED]
    return [Change(key, before.get(key), after.get(key)) for key in differing]


def read_config(run: Path) -> str:
    """Read the text of `<run>/config.yaml`.

    Raises:
        UserError: It is no UTF-8 or no YAML, as after an edit by hand, or was written by an earlier version.
    """
    file = run / CONFIG
    read_recipe(file)
    return file.read_text(encoding="utf-8")


def write_config(run: Path, text: str) -> None:
    """Write `<run>/config.yaml`; one with other settings stays as `config.0001.yaml`, `config.0002.yaml` and so on."""
    file = run / CONFIG
    if file.is_file():
        if not changed_settings(file.read_text(encoding="utf-8"), text):
            return
        number = 1 + max((int(path.suffixes[0][1:]) for path in run.glob("config.[0-9]*.yaml")), default=0)
        os.link(file, run / f"config.{number:04d}.yaml")
    write_atomically(file, text)


def flat_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their keys on the command line.

    >>> flat_settings({"model": {"class_path": "a.Stage", "init_args": {"width": 4}}})
    {'model.class_path': 'a.Stage', 'model.width': 4}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")
        if isinstance(value, dict) and value:
            flat.update(flat_settings(value, key))
        else:
            flat[key] = value
    return flat


def _value(value: Any) -> str:
    return shortened("nothing" if value is None else str(value), MAX_VALUE_CHARACTERS)
