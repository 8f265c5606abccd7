"""Compare the time to the first batch of a run that resumes late in its order with that of a fresh run.

Run: python benchmarks/loader_resume.py [--step 20000] [--repeats 7]

Both open the same shards and start the same workers; the order is computed, so the step should not matter.
JSON on stdout holds the ratio of the medians and the seconds.
"""

import argparse
import json
import sys
import tempfile
import time
from statistics import median

import torch

from divot_datamodules.video_text import VideoTextData
from divot_lightning.testing.toy_shards import make_toy_shards


def first_batch_seconds(shards: str, workers: int, state: dict[str, object] | None) -> float:
    started = time.perf_counter()
    data = VideoTextData(shards, batch_size=16, num_workers=workers)
    data.setup("fit")
    if state is not None:
        data.load_state_dict(state)
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - started
    data.teardown()
    return seconds


def state_at(shards: str, step: int) -> dict[str, object]:
    data = VideoTextData(shards, batch_size=16)
    data.setup("fit")
    assert data.position is not None
    data.position.used(step)
    return data.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--step", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        make_toy_shards(name, train=args.samples, validation=1, held_out=1)
        shards = f"{name}/train"
        state = state_at(shards, args.step)
        for workers in args.workers:
            first_batch_seconds(shards, workers, None)
            pairs = [
                (first_batch_seconds(shards, workers, None), first_batch_seconds(shards, workers, state))
                for _ in range(args.repeats)
            ]
            fresh, resumed = (median(times) for times in zip(*pairs, strict=True))
            result[f"{workers} workers"] = {
                "resumed_over_fresh": round(resumed / fresh, 3),
                "fresh_seconds": round(fresh, 4),
                "resumed_seconds": round(resumed, 4),
            }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
