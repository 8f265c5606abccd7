"""The command of a step, in which names of other steps in braces stand for their folders."""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divot_lightning.experiments.plan.experiment import PipelineStep

DIVOT = (sys.executable, "-m", "divot_lightning")
SEVERAL = (*DIVOT, "several")
MEASURE = (sys.executable, "-m", "divot_lightning.experiments.measure")
PROMPT_FIELDS = ("question", "options")
"""Names in braces that belong to prompts of `divot evaluate`."""

_REFERENCE = re.compile(r"\{([A-Za-z_]\w*)\}")


def step_text(step: PipelineStep) -> str:
    """Return what decides the result of a step but for its prompt, with names of other steps in braces."""
    options = {key: value for key, value in step.options.items() if key != "prompt"}
    return json.dumps([step.kind, step.what, options], sort_keys=True, default=str)


def references(step: PipelineStep) -> list[str]:
    """Return the steps that a step reads, in order."""
    return [
        name for name in dict.fromkeys(_REFERENCE.findall(step_text(step))) if name not in ("folder", *PROMPT_FIELDS)
    ]


def step_command(step: PipelineStep, known: Mapping[str, str], own: Path) -> tuple[str, ...]:
    """Return the words of a step's command.

    Args:
        step: The step, with the options of its trial.
        known: Folders of the steps that it may name, and its own as `folder`.
        own: Its own folder.
    """
    if step.kind == "measure":
        names = [{"name": name, "output": str(own / name)} for name in step.sources()]
        entries = [{**step.options, **entry, **name} for entry, name in zip(step.what, names, strict=True)]
        return (*MEASURE, json.dumps([_filled(entry, known) for entry in entries], sort_keys=True))
    options = _words(step.options, known)
    if step.kind == "fit":
        return (*DIVOT, "fit", "--config", _filled(step.what, known), "--run", str(own), *options)
    if isinstance(step.what, list):
        return (*SEVERAL, *(shlex.join([*_split(words, known), *options]) for words in step.what))
    return (*(DIVOT if step.kind == "divot" else ()), *_split(step.what, known), *options)


def _split(command: str, known: Mapping[str, str]) -> list[str]:
    return [_filled(word, known) for word in shlex.split(command)]


def _words(options: Mapping[str, Any], known: Mapping[str, str]) -> list[str]:
    filled = {key: _filled(value, known) for key, value in options.items()}
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in filled.items()}
    return [word for key, text in texts.items() for word in (f"--{key}", text)]


def _filled(value: Any, known: Mapping[str, str]) -> Any:
    """Replace names of steps in a value by their folders."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, known) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    return _REFERENCE.sub(lambda found: known.get(found[1], found[0]), value)
