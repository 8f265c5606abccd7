"""Describe the machine on which results were obtained: processor, memory, versions. No torch in here."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("divot-lightning", "torch", "lightning", "transformers", "diffusers", "av")


def _first_value(path: str, key: str) -> str:
    """Return the value of the first `key : value` line of a file, "" if there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def describe_machine() -> list[tuple[str, str]]:
    """Return facts about this machine, as (name, value)."""
    processor = _first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kib = _first_value("/proc/meminfo", "MemTotal").split(" ")[0]
    memory = [("Memory of the machine", f"{int(kib) / 2**20:.1f} GiB")] if kib.isdigit() else []
    return [
        ("Processor", f"{processor}, {cores} cores"),
        *memory,
        ("System", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("Versions", ", ".join(f"{name} {version(name)}" for name in PACKAGES)),
    ]
