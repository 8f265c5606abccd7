"""Run recipes as a user does, watch their metrics, and describe the machine."""

import csv
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from divot_lightning.cli.main import SEVERAL

Result = dict[str, Any]

DIVOT = [sys.executable, "-u", "-m", "divot_lightning"]  # -u: what was printed stays when it is killed
WARM_UP = 2
"""Logged steps that are not counted: the first ones allocate memory and choose kernels."""

PACKAGES = ("torch", "lightning", "transformers", "diffusers", "deepspeed", "divot-lightning")


def machine(device: str) -> Result:
    """Return hardware, versions, commit and time."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--short"], cwd=here, capture_output=True, text=True, check=False)
    gpu = None
    if device == "gpu":
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() + (" with changes" if changed.stdout.strip() else ""),
        "device": gpu or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def train(recipe: Result, folder: Path, rows: int, deadline: float) -> Result:
    """Train until enough steps were logged or time is up, and stop the run without saving it.

    Args:
        recipe: What `divot fit` gets; its run folder must be new.
        folder: Where the recipe is written.
        rows: Logged steps to wait for.
        deadline: Of `time.monotonic`.

    Returns:
        The median of each `speed/` metric, the highest memory, and what preflight predicts.

    Raises:
        RuntimeError: The run ended before `WARM_UP` + 1 steps were logged; the message ends with its output.
    """
    name, run = Path(recipe["run"]).name, Path(recipe["run"])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    log = folder / f"{name}.log"
    preflight = ["preflight", "--config", str(path), "--data.num_workers", "0"]
    fit = ["fit", "--config", str(path), "--trainer.enable_progress_bar", "false"]
    with log.open("wb") as output:
        words = [*DIVOT, SEVERAL, shlex.join(preflight), shlex.join(fit)]  # with one import of torch
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        while process.poll() is None and time.monotonic() < deadline and len(logged(run)) < rows:
            time.sleep(0.5)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    counted = logged(run)[WARM_UP:rows]
    if not counted:
        raise RuntimeError(f"no step after {WARM_UP} was logged; the end of its output:\n{log.read_text()[-2000:]}")
    predicted = _predicted(log.read_text())
    return {**medians(counted), **predicted, "ratio": _ratio(counted, predicted)}


def _predicted(told: str) -> Result:
    """Return what `divot preflight` predicts for the device: {"preflight_gib": number}."""
    found = re.search(r"together +([\d.]+) MiB", told)
    return {"preflight_gib": float(found[1]) / 1024 if found else None}


def logged(run: Path) -> list[dict[str, float]]:
    """Return the `speed/` metrics of each logged step of a run; rows are written as a whole."""
    file = run / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        rows = [
            row for row in csv.DictReader(lines) if None not in row.values() and row.get("speed/samples_per_second")
        ]
    return [
        {
            name.removeprefix("speed/"): float(value)
            for name, value in row.items()
            if name.startswith("speed/") and value
        }
        for row in rows
    ]


def medians(rows: list[dict[str, float]]) -> Result:
    """Return the median of each metric over steps, and the highest peak of memory."""
    names = {name for row in rows for name in row}
    found: Result = {name: statistics.median([row[name] for row in rows if name in row]) for name in sorted(names)}
    return {"steps": len(rows), **found, "peak_memory_gib": max(row["peak_memory_gib"] for row in rows)}


def _ratio(rows: list[dict[str, float]], predicted: Result) -> float | None:
    return predicted["preflight_gib"] and max(row["peak_memory_gib"] for row in rows) / predicted["preflight_gib"]
