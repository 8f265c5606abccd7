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
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from divot_lightning.errors import UserError
from divot_lightning.io.component_files import CONFIG_FILE, PARTS_KEY, WEIGHTS_FILE
from divot_lightning.io.files import file_sha256, write_atomically
from divot_lightning.io.renamed import current_component, explain_import_error
from divot_lightning.models.weights import component_tensors, fill, weight_paths, without_memory
from divot_lightning.parts.registries.trusted_classes import require_trusted

RECORD_FILE = "components.json"
MAX_NAMES_SHOWN = 3

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
    # The random initial weights are overwritten at once; making them must not change the random numbers of the run.
    with torch.random.fork_rng(devices=[]), without_memory():
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
        sizes = {name: tuple(tensor.read().shape) for name, tensor in stored.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}\nRun the stage that writes it again") from error
    wrong = [
        f"{name} {sizes[name]} instead of {tuple(value.shape)}"
        for name, value in module.state_dict().items()
        if name in sizes and sizes[name] != tuple(value.shape)
    ]
    missing, unexpected = ([], []) if wrong else fill(module, stored)
    problems = {"missing": missing, "not expected": unexpected, "of another size": wrong}
    if any(problems.values()):
        lines = [f"{what}: {_shorten(sorted(names))}" for what, names in problems.items() if names]
        raise UserError("\n".join([f"the weights in {file} do not fit a {type(module).__name__}", *lines]))


def find_component(run: str | Path, name: str) -> Path:
    """Find a component of a run: one that it wrote, or one that it took over from an earlier stage.

    Args:
        run: A run folder, or the component folder itself.
        name: Such as `tokenizer`, `detokenizer`, `video_llm`.

    Returns:
        The component folder.

    Raises:
        UserError: There is no such run or component, or an earlier stage's weights have changed since.
    """
    run = Path(run)
    if (run / CONFIG_FILE).is_file():
        return run
    record = read_record(run)
    if (run / name / CONFIG_FILE).is_file():
        return _same(run, name, run / name, record[name]) if name in record else run / name
    if name in record:
        return _recorded(run, name, record[name])
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}\nrun the stage that makes it, or correct the path")
    raise UserError(
        f"{run} has no {name}; it has: {', '.join(component_names(run)) or 'no component'}\n"
        "give the run folder of a finished stage that trains or uses one"
    )


def component_names(run: str | Path) -> list[str]:
    """Return the names of a run's components, of those too that it took over from an earlier stage."""
    # No name with a dot in front: those are left behind by a save that was cut off.
    return sorted({*read_record(run), *(file.parent.name for file in Path(run).glob(f"[!.]*/{CONFIG_FILE}"))})


def record_components(run: str | Path, used: dict[str, Path]) -> None:
    """Write into a run where the components come from that it uses and does not train, with their content hashes."""
    run = Path(run)
    record = {
        name: {
            "folder": os.path.relpath(folder.resolve(), run.resolve()),
            "absolute": str(folder.resolve()),
            "sha256": weights_sha256(folder),
        }
        for name, folder in used.items()
    }
    write_atomically(run / RECORD_FILE, json.dumps(record, indent=1) + "\n")


def read_record(run: str | Path) -> dict[str, dict[str, str]]:
    """Read what `record_components` wrote; empty if there is nothing."""
    file = Path(run) / RECORD_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}\ncopy the run again, or run its stage again") from error


def weights_sha256(folder: str | Path) -> str:
    """Return the SHA-256 of a component's weights, in hexadecimal; of several files that of their names and hashes."""
    files = weight_paths(Path(folder))
    if len(files) == 1:
        return file_sha256(files[0])
    lines = [f"{file.relative_to(folder)} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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


def _recorded(run: Path, name: str, source: dict[str, str]) -> Path:
    """Follow a record: from the run, so that runs can be moved together, or to where it was, if only the run moved."""
    # The recorded path starts at the run itself, which may have been reached through a link.
    beside = Path(os.path.normpath(run.resolve() / source["folder"]))
    folder = next((path for path in (beside, Path(source.get("absolute", beside))) if _has_weights(path)), None)
    if folder is None:
        raise UserError(
            f"{run} uses the {name} in {beside}, which is gone\n"
            "a run holds what it trained itself: move it together with the runs that it builds on,\n"
            f"or put a copy of that {name} folder, or a link to it, at {run / name}"
        )
    return _same(run, name, folder, source)


def _has_weights(folder: Path) -> bool:
    return all(file.is_file() for file in weight_paths(folder))


def _same(run: Path, name: str, folder: Path, source: dict[str, str]) -> Path:
    """Refuse other weights than the run was made with."""
    found = weights_sha256(folder) if _has_weights(folder) else "nothing"
    if found != source["sha256"]:
        raise UserError(
            f"{run} was made with another {name} than {folder} now holds\n"
            f"expected sha256 {source['sha256'][:16]}..., found {found[:16]}...; put the right one there, or run the "
            "stages after it again"
        )
    return folder


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


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    return shown if len(names) <= MAX_NAMES_SHOWN else f"{shown} and {len(names) - MAX_NAMES_SHOWN} more"
