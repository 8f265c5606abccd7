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

COUNTING = {"cpu": 0, "gpu": 8}
"""Logged steps in which operations are counted, by Lightning's accelerator. They are slower than later ones. On a GPU
they are the `MEASURED_BATCHES` of `TrainingSpeed`, whose module is not imported here since that takes seconds."""

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
        rows: Logged steps to wait for, besides those in which operations are counted.
        deadline: Of `time.monotonic`.

    Returns:
        The number of logged steps before those that count, the median of each `speed/` metric, the highest memory, and
        what preflight predicts.

    Raises:
        RuntimeError: The run ended before `WARM_UP` + 1 steps were logged; the message ends with its output.
    """
    name, run = Path(recipe["run"]).name, Path(recipe["run"])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    log = folder / f"{name}.log"
    rows += COUNTING[recipe["trainer"]["accelerator"]]
    with log.open("wb") as output:
        words = [*DIVOT, *preflight_and_fit(path)]
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        while process.poll() is None and time.monotonic() < deadline and len(logged(run)) < rows:
            time.sleep(0.5)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = logged(run)[:rows]
    told = log.read_text()
    if len(found) <= WARM_UP:
        raise RuntimeError(f"no step after {WARM_UP} was logged; the end of its output:\n{told[-2000:]}")
    return {**steady(found, recipe["trainer"]["accelerator"]), **memory_beside_preflight(found, told)}


def steady(rows: list[dict[str, float]], accelerator: str) -> Result:
    """Return the medians of the steps after those that are slower, and how many were left out.

    Args:
        rows: From `logged`, of one process, more than `WARM_UP`.
        accelerator: As Lightning calls it.
    """
    left_out = max(WARM_UP, COUNTING[accelerator])
    left_out = left_out if len(rows) > left_out else WARM_UP  # slow steps are better than none
    return {"steps_left_out": left_out, **medians(rows[left_out:])}


def preflight_and_fit(path: Path) -> list[str]:
    """Return the words that run `divot preflight` and `divot fit` of a recipe with one import of torch."""
    preflight = ["preflight", "--config", str(path), "--data.num_workers", "0"]
    fit = ["fit", "--config", str(path), "--trainer.enable_progress_bar", "false"]
    return [SEVERAL, shlex.join(preflight), shlex.join(fit)]


def memory_beside_preflight(rows: list[dict[str, float]], told: str) -> Result:
    """Return the peak of logged steps, what `divot preflight` has told about the device, and the first by the second.

    Args:
        rows: From `logged`.
        told: Output of preflight.
    """
    found = re.search(r"together +([\d.]+) MiB", told)
    predicted = float(found[1]) / 1024 if found else None
    peak = max(row["peak_memory_gib"] for row in rows)
    return {"peak_memory_gib": peak, "preflight_gib": predicted, "ratio": predicted and peak / predicted}


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
    """Return the number of steps and the median of each metric over them."""
    names = {name for row in rows for name in row}
    found: Result = {name: statistics.median([row[name] for row in rows if name in row]) for name in sorted(names)}
    return {"steps": len(rows), **found}
