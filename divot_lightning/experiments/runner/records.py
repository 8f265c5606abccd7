"""Read and write the record of each step of a job: `<folder>/steps/<name>.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from divot_lightning.io.files import write_atomically


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


def read_record(folder: Path, name: str) -> StepRecord | None:
    """Return the record of a step, None if it was never started."""
    path = folder / "steps" / f"{name}.json"
    if not path.is_file():
        return None
    entry = json.loads(path.read_text(encoding="utf-8"))
    return StepRecord(**entry | {"command": tuple(entry["command"])})


def is_done(folder: Path, name: str) -> bool:
    """Return whether a step ended well."""
    record = read_record(folder, name)
    return record is not None and record.done


def write_record(folder: Path, record: StepRecord) -> None:
    """Write the record of a step, whole or not at all."""
    path = folder / "steps" / f"{record.name}.json"
    write_atomically(path, json.dumps(asdict(record)))
