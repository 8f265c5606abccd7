"""Component folders: how a stage exports a module for the next one.

A component is an `nn.Module` with a `config` dataclass. Its folder holds `config.json` (class and settings) and
`model.safetensors`; for other files of weights see `divot_lightning.io.component_files`. Nothing in it can run code:
only a class that `divot_lightning.parts.registries.trusted_classes` allows is imported. A module that needs more than
settings and weights, such as a text tokenizer, writes its other files in `save_extra(folder)` and is built by its
classmethod `from_component(config, folder)`.
"""

import dataclasses
import hashlib
import importlib
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from divot_lightning.errors import UserError, problem_lines
from divot_lightning.io.component_files import CONFIG_FILE, PARTS_KEY, WEIGHTS_FILE
from divot_lightning.io.renamed import current_component, explain_import_error
from divot_lightning.models.weights import component_tensors, fill, without_values
from divot_lightning.parts.registries.trusted_classes import require_trusted

ModuleType = TypeVar("ModuleType", bound=nn.Module)
ConfigType = TypeVar("ConfigType")


def save_component(module: nn.Module, folder: str | Path) -> None:
    """Write a component folder; it appears whole or not at all, and replaces one of the same name.

    Args:
        module: Has a `config` dataclass that JSON can hold; every process that calls this holds it whole.
        folder: Where to.
    """
    with new_component(module, folder) as weights_file:
        save_model(module, str(weights_file))


@contextmanager
def new_component(module: nn.Module, folder: str | Path, parts: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Write a component folder but for its weights, which are written within; then the folder appears.

    Args:
        module: As for `save_component`; its parameters are not looked at.
        folder: Where to.
        parts: Sub-folders that hold the weights of inner modules, by module path; they are written within, too.

    Yields:
        The file for the weights.
    """
    folder = Path(folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    config = module.config
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    described = {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "config": dataclasses.asdict(config),
        **({PARTS_KEY: dict(parts)} if parts else {}),
    }
    (unfinished / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    yield unfinished / WEIGHTS_FILE
    save_extra = getattr(module, "save_extra", None)
    if save_extra is not None:
        save_extra(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def load_component(folder: str | Path, expected: type[ModuleType]) -> ModuleType:
    """Build the module of a component folder and load its weights; names and sizes must fit exactly.

    Args:
        folder: The component folder.
        expected: Class the module must have.

    Returns:
        The module, on the CPU, in training mode; sharded as `divot_lightning.models.weights` says.

    Raises:
        UserError: The folder is no component folder, holds another class or one that is not trusted, or its weights do
            not fit.
    """
    folder = Path(folder)
    described = _read_config(folder)
    actual = _import_class(described["class"], folder)
    _require(actual, expected, folder)
    # What is drawn besides the weights must not change the random numbers of the run.
    with torch.random.fork_rng(devices=[]), without_values():
        module = _build(actual, described["config"], folder)
    load_weights(module, folder)
    assert isinstance(module, expected)
    return module


def read_settings(folder: str | Path, expected: type[nn.Module], config_class: type[ConfigType]) -> ConfigType:
    """Read a component's settings without building it.

    Args:
        folder: The component folder.
        expected: Class the component must have.
        config_class: Class of its settings.

    Raises:
        UserError: As `load_component`, but for the weights.
    """
    folder = Path(folder)
    described = _read_config(folder)
    _require(_import_class(described["class"], folder), expected, folder)
    known = {entry.name for entry in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    try:
        return config_class(**{name: value for name, value in described["config"].items() if name in known})
    except TypeError as error:
        raise UserError(f"the settings in {folder / CONFIG_FILE} do not fit {expected.__name__}: {error}") from error


def _require(actual: type[nn.Module], expected: type[nn.Module], folder: Path) -> None:
    if not issubclass(actual, expected):
        raise UserError(f"{folder} holds a {actual.__name__}, but a {expected.__name__} is needed; give its folder")


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Load the weights of a component folder into a module; keys and sizes must be the same.

    Raises:
        UserError: Which keys are missing, unexpected or of another size.
    """
    folder = Path(folder)
    file = folder / WEIGHTS_FILE
    try:
        stored = component_tensors(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}\nRun the stage that writes it again") from error
    wrong = [
        f"{name} {stored[name].shape} instead of {tuple(value.shape)}"
        for name, value in module.state_dict().items()
        if name in stored and stored[name].shape != tuple(value.shape)
    ]
    missing, unexpected = ([], []) if wrong else fill(module, stored)
    problems = {"missing": sorted(missing), "not expected": sorted(unexpected), "of another size": sorted(wrong)}
    if lines := problem_lines(problems):
        raise UserError("\n".join([f"the weights in {file} do not fit a {type(module).__name__}", *lines]))


def part_sha256(folder: str | Path, name: str) -> str:
    """Return a SHA-256 of one part of a component: class, settings and weights, but for its batch size.

    Args:
        folder: The component folder.
        name: The part's key in the config, which is the name of its module too, such as `latents`.
    """
    folder = Path(folder)
    described = _read_config(folder)["config"][name]
    settings = {key: value for key, value in described["init_args"].items() if key != "batch_size"}
    digest = hashlib.sha256(json.dumps([described["class_path"], settings], sort_keys=True).encode())
    for key, tensor in sorted(component_tensors(folder).items()):
        if key.startswith(f"{name}."):
            digest.update(key.encode() + tensor.read().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`, in today's names also where an earlier version wrote it."""
    try:
        described = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not (isinstance(described["class"], str) and isinstance(described["config"], dict)):
            raise TypeError
        return current_component(described)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no component folder: {CONFIG_FILE} is missing or damaged ({type(error).__name__})"
        ) from error


def _import_class(path: str, folder: Path) -> type[nn.Module]:
    require_trusted(path, folder / CONFIG_FILE)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} names the class {path!r}, which cannot be imported: "
            f"{explain_import_error(str(error)) or error}"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"{folder / CONFIG_FILE} names {path!r}, which is no torch module")
    return found


def _build(actual: type[nn.Module], config: dict[str, Any], folder: Path) -> nn.Module:
    from_component = getattr(actual, "from_component", None)
    if from_component is not None:
        return from_component(config, folder)
    config_class = inspect.get_annotations(actual.__init__, eval_str=True)["config"]
    try:
        return actual(config_class(**config))
    except TypeError as error:
        raise UserError(f"the settings in {folder / CONFIG_FILE} do not fit {actual.__name__}: {error}") from error
