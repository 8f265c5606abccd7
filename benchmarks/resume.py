"""Compare the seconds from `divot resume` to its first finished step with those of a fresh start.

Run: python benchmarks/resume.py [--devices 2 --strategy divot_zero2] [--repeats 3]

A toy run of the LLM stage is started, killed with `kill -9` after its first checkpoint, and resumed. Each time ends
when the first step is in `metrics.csv`. Importing torch and Lightning is measured as well, since it takes most of
both times.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from divot_lightning.testing.toy_shards import make_toy_shards
from tests.helpers.jobs import Job

RUN = Path("runs/measured")
IMPORTS = "import torch, lightning.pytorch, transformers, diffusers"


def seconds_to_first_step(words: list[str]) -> float:
    """Start or resume the run, return the seconds until a step is logged, and end it with `kill -9`."""
    metrics, checkpoints = RUN / "metrics.csv", RUN / "checkpoints"
    metrics.unlink(missing_ok=True)
    before = {path.name for path in checkpoints.glob("step_*")}
    start = time.perf_counter()
    with Job.divot("resume", str(RUN), *words) as job:
        job.wait_for(metrics)
        seconds = time.perf_counter() - start
        while {path.name for path in checkpoints.glob("step_*")} <= before:  # a step further at each start
            time.sleep(0.05)
        job.send(signal.SIGKILL)
    return seconds


def import_seconds() -> float:
    """Return the seconds of a process that only imports."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - start


def measure(words: list[str], repeats: int) -> dict[str, float]:
    """Return the medians."""
    fresh, resumed = [], []
    for _ in range(repeats):
        shutil.rmtree(RUN, ignore_errors=True)
        fresh.append(seconds_to_first_step(words))
        resumed.append(seconds_to_first_step(words))
    return {
        "imports alone": statistics.median(import_seconds() for _ in range(repeats)),
        "fresh start to first step": statistics.median(fresh),
        "divot resume to first step": statistics.median(resumed),
    }


def main() -> None:
    """Print a table of seconds and of ratios to the fresh start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_toy_shards(Path("data/toy"))
        prepare = ["fit", "--config", "toy/tokenizer_pretraining", "--trainer.max_steps", "0"]
        subprocess.run([sys.executable, "-m", "divot_lightning", *prepare], check=True, stderr=subprocess.DEVNULL)
        words = ["--config", "toy/llm_pretraining", "--model.optimizer", "adamw", "--data.batch_size", "8"]
        words += ["--trainer.log_every_n_steps", "1", "--checkpoint.every_steps", "3", "--trainer.devices"]
        seconds = measure([*words, given.devices, "--trainer.strategy", given.strategy], given.repeats)
    fresh = seconds["fresh start to first step"]
    for name, value in seconds.items():
        sys.stdout.write(f"{name:<28} {value:6.1f} s  {value / fresh:5.2f} x\n")


if __name__ == "__main__":
    main()
