"""Measure the growth of memory while the data module reads many clips, of its own process and of its workers.

Run: python benchmarks/loader_memory.py [--clips 10000] [--workers 2]

The resident memory of each process is read after every 1,000 clips; the growth per 1,000 clips is the slope of a line
through these readings, without the first. JSON on stdout holds the slopes and the readings in MB.
"""

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.video_text import VideoTextData
from divot_lightning.testing.toy_shards import make_toy_shards

EVERY, BATCH = 1000, 20


def resident_mb(pid: int | str, kind: str = "Rss") -> float:
    """Return a process's resident memory in MB; without shared memory if kind is "private"."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}
    size = sizes["Rss"] if kind == "Rss" else sizes["Private_Clean"] + sizes["Private_Dirty"]
    return size / 1000


def slope(readings: list[float]) -> float:
    """Return the growth per reading, without the first."""
    later = readings[1:]
    return round(float(np.polyfit(range(len(later)), later, 1)[0]), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        make_toy_shards(name, train=200, validation=1, held_out=1)
        clip = ClipConfig(height=args.size, width=args.size)
        data = VideoTextData(
            f"{name}/train", batch_size=BATCH, num_workers=args.workers, clip=clip, tasks={"caption": 1.0}
        )
        data.setup("fit")
        batches = iter(data.train_dataloader())
        readings: dict[str, list[float]] = {}
        for number in range(args.clips // BATCH):
            next(batches)
            if (number + 1) * BATCH % EVERY == 0:
                gc.collect()
                readings.setdefault("loader", []).append(resident_mb("self"))
                for index, worker in enumerate(sorted(multiprocessing.active_children(), key=lambda one: one.pid or 0)):
                    readings.setdefault(f"worker {index}", []).append(resident_mb(worker.pid or 0, "private"))
                sys.stderr.write(
                    f"{(number + 1) * BATCH} clips: { {who: all_[-1] for who, all_ in readings.items()} }\n"
                )
        data.teardown()
    growth = {who: slope(one) for who, one in readings.items()}
    sys.stdout.write(json.dumps({"mb_per_1000_clips": growth, "mb": readings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
