"""Measure what the order of training costs a process of a large job: time per step, and memory.

Run: python benchmarks/order_plan.py [--ranks 1024] [--samples 1000000000] [--shards 100000] [--sources 1]

Nothing is read: the order is arithmetic on the numbers of samples in the shards. A process computes its own part of
each step. JSON on stdout holds microseconds of processor time per step and MiB of resident memory that the plan added.
"""

import argparse
import json
import sys
import time

import psutil

from divot_datamodules.order.order_plan import OrderPlan
from divot_datamodules.order.source_order import SourceOrder


def measure(ranks: int, per_rank: int, samples: int, shards: int, sources: int, steps: int) -> dict[str, float]:
    """Return the cost of a process in the middle of the job, at the start of the order and late in it."""
    process = psutil.Process()
    before = process.memory_info().rss
    counts = (samples // shards // sources,) * shards
    orders = tuple(SourceOrder(counts=counts, seed=seed) for seed in range(sources))
    plan = OrderPlan(orders, (ranks * per_rank,), weights=tuple(1.0 + seed for seed in range(sources)))
    result = {}
    for name, first in (("first steps", 0), ("steps after 10^6", 10**6)):
        plan.batch(first, ranks // 2, ranks)  # permutes the shards of the pass
        started = time.process_time()
        for step in range(first, first + steps):
            plan.batch(step, ranks // 2, ranks)
        result[f"{name}, microseconds"] = 1e6 * (time.process_time() - started) / steps
    result["MiB"] = (process.memory_info().rss - before) / 2**20
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--per-rank", type=int, default=16, help="samples of a process in a step")
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--sources", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    json.dump({**vars(args), **measure(**vars(args))}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
