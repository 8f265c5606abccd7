"""The record of each step of a job: `<folder>/steps/<name>.json`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import yaml

from divot_lightning.io.files import write_atomically
from divot_lightning.training.recipe_files import find_recipe


@dataclass(frozen=True)
class StepRecord:
    """The record of a step that was started.

    Attributes:
        name: Its name.
        command: Its command line.
        done: Whether it ended well.
        seconds: Wall time of all attempts; a few seconds may be missing if it was killed.
        peak_mib: Largest resident memory of its processes.
        together_mib: Largest resident memory of all steps that ran at the same time as this one.
        attempts: How often it was started.
        started: When it was first started, seconds since 1970.
        failure: The error of its latest attempt; "" if that did not fail.
        recipe_sha256: Of the recipes that its command names, at its latest start; "" if it names none, and in records
            of before 2026-12.
    """

    name: str
    command: tuple[str, ...]
    done: bool
    seconds: float
    peak_mib: float
    together_mib: float
    attempts: int
    started: float
    failure: str = ""
    recipe_sha256: str = ""

    @classmethod
    def read(cls, folder: Path, name: str) -> Self | None:
        """Return the record of a step, None if it was never started."""
        path = folder / "steps" / f"{name}.json"
        if not path.is_file():
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
        return cls(**entry | {"command": tuple(entry["command"])})

    def write(self, folder: Path) -> None:
        """Write the record, whole or not at all."""
        write_atomically(folder / "steps" / f"{self.name}.json", json.dumps(asdict(self)))

    @property
    def reason(self) -> str:
        """The error in one line; "" if the latest attempt did not fail."""
        return self.failure.splitlines()[1] if self.failure else ""


def recipe_sha256(command: Sequence[str]) -> str:
    """Return the hash of what the recipes say that a command names after `--config`; "" if one cannot be read."""
    names = [value for word, value in pairwise(command) if word == "--config"]
    try:
        content = [yaml.safe_load(find_recipe(name).read_text(encoding="utf-8")) for name in names]
    except (OSError, ValueError, yaml.YAMLError):  # no such recipe is a UserError, which is a ValueError
        return ""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest() if content else ""


def is_done(folder: Path, name: str) -> bool:
    """Return whether a step ended well."""
    record = StepRecord.read(folder, name)
    return record is not None and record.done
