"""Export a run: one folder with its components in standard formats, an index and a model card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from divot_lightning import __version__
from divot_lightning.checkpoint.components import load_component
from divot_lightning.errors import UserError
from divot_lightning.interop.exporting.export_parts import merge_module_adapters, write_component
from divot_lightning.interop.exporting.export_source import find_source
from divot_lightning.interop.exporting.model_card import model_card, without_folders
from divot_lightning.interop.folders import require_new, whole_folder
from divot_lightning.io.component_files import CONFIG_FILE, WEIGHTS_FILE
from divot_lightning.parts.tasks import phrases_of_file
from divot_lightning.training.run_folder import CONFIG, read_data_config

INDEX = "model_index.json"
CARD = "README.md"
INFERENCE_KEYS = ("template", "clip", "tasks")
"""Settings of a run's data that inference needs."""


def export_run(
    source: str | Path,
    folder: str | Path,
    *,
    components: Sequence[str] = (),
    keep_adapters: bool = False,
    max_shard_size: int | str = "5GB",
    scores: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the components of a run into a new folder, which appears whole or not at all.

    Args:
        source: Run folder of a finished run, folder of components, or checkpoint folder of any run.
        folder: Where to; it must not exist.
        components: Names of the components; all by default.
        keep_adapters: Leave adapters (LoRA) as they are, and write those of the language model as a PEFT folder.
        max_shard_size: Largest size of a file with weights, in bytes or as "5GB".
        scores: Scores for the model card, with "name", "value", "count" and "protocol".

    Returns:
        The folder.

    Raises:
        UserError: The folder exists, or see `find_source`.
    """
    folder = require_new(folder)
    found = find_source(source, components)
    with whole_folder(folder) as work:
        work.mkdir()
        _write_inference_config(found.run, work)  # first, since it may be damaged, and weights take long
        classes = {}
        for name, given in found.components.items():
            module = load_component(given, nn.Module) if isinstance(given, Path) else given
            classes[name] = [type(module).__module__, type(module).__qualname__]
            if not keep_adapters:
                merge_module_adapters(module)
            write_component(module, work / name, max_shard_size)
            _finish_component(given, work / name)
        index = {"_class_name": "DivotPipeline", "_divot_lightning_version": __version__, **classes}
        (work / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        (work / CARD).write_text(model_card(found, work, scores), encoding="utf-8")
    return folder


def _finish_component(given: Path | nn.Module, written: Path) -> None:
    """Leave out folders of this machine; copy a run's own file of weights where the export would have the same.

    So its hash stays, which encoded shards record.
    """
    described = _described(written)
    (written / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    files = [each / WEIGHTS_FILE for each in (given, written) if isinstance(each, Path)]
    if all(file.is_file() for file in files) and isinstance(given, Path) and _described(given) == described:
        shutil.copyfile(*files)


def _described(component: Path) -> Any:
    return without_folders(json.loads((component / CONFIG_FILE).read_text(encoding="utf-8")))


def _write_inference_config(run: Path, folder: Path) -> None:
    """Write what inference reads of a run's settings: how clips are cut, and the form of the prompts."""
    if not (run / CONFIG).is_file():
        return
    data = read_data_config(run)
    kept = {key: data[key] for key in INFERENCE_KEYS if data.get(key) is not None}
    train = data.get("train")
    if isinstance(train, list):
        kept["train"] = [{"tasks": entry.get("tasks")} for entry in train if isinstance(entry, dict)]
    for holder in (kept, *kept.get("train", [])):
        holder |= {"tasks": _with_phrases(holder["tasks"])} if holder.get("tasks") else {}
    text = yaml.safe_dump({"data": {"init_args": without_folders(kept)}}, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _with_phrases(settings: Any, name: str = "") -> Any:
    """Return tasks with phrases in the place of the files that hold them, since the files stay behind."""
    if isinstance(settings, dict):
        return {key: _with_phrases(value, key) for key, value in settings.items()}
    return phrases_of_file(name, settings) if isinstance(settings, str) and name.endswith("prompts") else settings


def require_shard_size(text: str) -> str:
    """Return a size such as "5GB".

    Raises:
        UserError: It is none.
    """
    number, unit = text[:-2], text[-2:].upper()
    if unit not in ("KB", "MB", "GB", "TB") or not number.replace(".", "", 1).isdecimal() or float(number) <= 0:
        raise UserError(f"--max-shard-size is {text!r}; give a number with KB, MB, GB or TB, such as 5GB")
    return number + unit
