"""Measure one way to load clips, in this process and its workers; `run.py` starts it in the way's environment."""

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from benchmarks.loaders.ways import BATCH, MODULES, WAYS, Batches

WARM_UP = 4
"""Batches before the clock starts, until workers decode as far ahead as they do later."""


def cpu_seconds() -> float:
    """Return the processor time of this process, of its ended children and of its living workers."""
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    own = os.times()
    spent = own.user + own.system + own.children_user + own.children_system
    return spent + ticks / os.sysconf("SC_CLK_TCK")


def measured(batches: Batches, count: int) -> dict[str, float]:
    """Return what a clip costs, in all processes together."""
    for _ in islice(batches, WARM_UP - 1):
        pass
    started, spent = time.perf_counter(), cpu_seconds()
    for _ in islice(batches, count):
        pass
    seconds, spent = time.perf_counter() - started, cpu_seconds() - spent
    return {"cpu_ms_per_clip": 1000 * spent / (count * BATCH), "clips_per_s": count * BATCH / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    importlib.import_module(MODULES[args.way])
    started = time.perf_counter()
    batches = iter(WAYS[args.way](args.folder, args.workers, args.size))
    first = next(batches)
    result = {"first_batch_s": time.perf_counter() - started, **measured(batches, args.batches)}
    assert first.shape == (BATCH, 16, 3, args.size, args.size), first.shape
    assert first.dtype == torch.uint8, first.dtype
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # some of the libraries hang at exit while their workers wait


if __name__ == "__main__":
    main()
