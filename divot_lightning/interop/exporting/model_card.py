"""The model card of an export: recipe, data, scores with their protocol, and how to load each folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from divot_lightning import __version__
from divot_lightning.interop.exporting.export_source import ExportSource
from divot_lightning.training.run_folder import CONFIG

LOADING = {
    "video_llm/language_model": "AutoModelForCausalLM.from_pretrained(FOLDER)  # from transformers",
    "video_llm/adapter": "PeftModel.from_pretrained(base_model, FOLDER)  # from peft",
    "video_llm/head": "load_head(FOLDER)  # from divot_lightning.interop.exporting.export_parts",
    "detokenizer/denoiser": "{name}.from_pretrained(FOLDER)  # from diffusers",
    "detokenizer/vae": "{name}.from_pretrained(FOLDER)  # from diffusers",
}
"""How a folder of an export is loaded alone; the comment names the module."""

RECIPE_KEYS = ("model", "data", "trainer", "seed_everything")
"""Sections of a run's settings that a card shows."""


def model_card(source: ExportSource, folder: Path, scores: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of `README.md`.

    Args:
        source: What was exported.
        folder: The export, already written.
        scores: With "name", "value", "count" and "protocol".
    """
    data = ModelCardData(library_name="divot-lightning", tags=["divot", "video"])
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {source.run.resolve().name}\n\n"
        f"Exported by divot-lightning {__version__} from a training run: {source.description}.\n"
        "Divot is a diffusion-powered video tokenizer and a video LLM ([arXiv:2412.04432]"
        "(https://arxiv.org/abs/2412.04432)).\n\n"
        "**Licence:** not stated. Whoever publishes this decides, within the licences of the data and of the "
        "pretrained models below.",
        f"## Folders\n\n{_folders(folder)}",
        _recipe(source.run),
        _scores(scores),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _folders(folder: Path) -> str:
    described = {
        str(file.parent.relative_to(folder)): _class_of(file) for file in sorted(folder.glob("**/*config.json"))
    }
    rows = [
        f"| `{name}` | `{LOADING[name].format(name=described[name])}` |"
        if name in LOADING
        else f"| `{name}` | `load_component(FOLDER, {described[name]})  # from divot_lightning.checkpoint.components` |"
        for name in described
        if name in LOADING or "/" not in name
    ]
    return "\n".join(["| folder | loaded alone by |", "|---|---|", *rows])


def _class_of(file: Path) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    return str(content.get("_class_name") or content.get("class", "")).rpartition(".")[2]


def _recipe(run: Path) -> str:
    file = run / CONFIG
    if not file.is_file():
        return ""
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    shown = {key: without_folders(settings[key]) for key in RECIPE_KEYS if key in settings}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    return f"## Recipe and data\n\nFolders of the machine it was trained on are left out.\n\n```yaml\n{text}```"


def without_folders(value: Any) -> Any:
    """Return settings with only the last name of every absolute path, since folders may name people and machines.

    >>> without_folders({"train": ["/home/me/clips/a.tar"], "lr": 0.1})
    {'train': ['.../a.tar'], 'lr': 0.1}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return f".../{Path(value).name}"
    return value


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "## Scores\n\nNone were measured. `divot evaluate` measures a run."
    protocols: list[str] = []
    rows = ["| score | value | measured on | protocol |", "|---|---|---|---|"]
    for score in scores:
        protocol = json.dumps(without_folders(score["protocol"]), indent=1, sort_keys=True)
        if protocol not in protocols:
            protocols.append(protocol)
        rows.append(f"| {score['name']} | {score['value']:.4f} | {score['count']} | {protocols.index(protocol) + 1} |")
    blocks = [f"Protocol {number}:\n\n```json\n{text}\n```" for number, text in enumerate(protocols, start=1)]
    return "\n\n".join(["## Scores\n\nOnly scores with the same protocol can be compared.", "\n".join(rows), *blocks])
