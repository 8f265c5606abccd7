"""Compare the data module's frames per second with decoding the same clips one after another on the same cores.

Run: python benchmarks/loader.py [--size 256] [--clips 96] [--workers 0 1 2] [--repeats 5]

Each figure is a ratio of two times, measured in turn: that of the loader, and that of as many plain processes as it has
workers, which only decode the same clips from memory. "cpu" is the ratio of processor times of all processes, which
other programs on the machine disturb less. JSON on stdout holds median, smallest and largest.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median

import numpy as np
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.loading.batch_reader import sample_rng
from divot_datamodules.shards.writing import ShardFolder
from divot_datamodules.video_text import VideoTextData
from divot_lightning.parts.batch import Batch

SHARDS, BATCH, AHEAD = 4, 8, 4
WAYS = {"16_of_n": None, "5_of_16": 5}


def moving_picture(frames: int, size: int, seed: int) -> np.ndarray:
    """Return a video of a smooth random picture that moves, uint8 (F, 3, H, W)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (1, 3, 16, 16)).astype(np.float32)
    picture = torch.nn.functional.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic")[0]
    shifts = [torch.roll(picture, (frame, 2 * frame), (1, 2)) for frame in range(frames)]
    return torch.stack(shifts).clamp(0, 255).to(torch.uint8).numpy()


def write_shards(folder: Path, clips: int, size: int, seconds: int, fps: int) -> dict[str, bytes]:
    """Write clips whose frame rate differs from the sampled one, as in real videos."""
    shards, media = ShardFolder(folder, kind="video", settings={}), {}
    step = -(-clips // SHARDS)
    for number in range(SHARDS):
        keys = [f"k{key}" for key in range(number * step, min((number + 1) * step, clips))]
        for key in keys:
            media[key] = encode_video(moving_picture(seconds * fps, size, int(key[1:])), fps, pixel_format="yuv420p")
        shards.write(number, [(key, {"mp4": media[key]}) for key in keys])
    shards.finish()
    return media


def decode_all(work: list[tuple[bytes, int]], clip: ClipConfig) -> None:
    for data, index in work:
        decode_clip(data, clip, sample_rng(0, index, 0))


def cpu_seconds(processes: Iterable[BaseProcess] = ()) -> float:
    """Return the processor time of this process, of ended children and of those given."""
    own = os.times()
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    spent = own.user + own.system + own.children_user + own.children_system
    return spent + ticks / os.sysconf("SC_CLK_TCK")


def plain_seconds(work: list[tuple[bytes, int]], clip: ClipConfig, processes: int) -> tuple[float, float]:
    """Decode in this process, or in several with equal numbers of clips; return wall and processor time."""
    started, spent = time.perf_counter(), cpu_seconds()
    if processes <= 1:
        decode_all(work, clip)
    else:
        context = multiprocessing.get_context("fork")
        others = [context.Process(target=decode_all, args=(work[n::processes], clip)) for n in range(processes)]
        for other in others:
            other.start()
        for other in others:
            other.join()
    return time.perf_counter() - started, cpu_seconds() - spent


def loader_seconds(batches: Iterator[Batch], count: int) -> tuple[float, float]:
    """Take batches; return wall and processor time."""
    workers = multiprocessing.active_children()
    started, spent = time.perf_counter(), cpu_seconds(workers)
    for _ in islice(batches, count):
        pass
    return time.perf_counter() - started, cpu_seconds(workers) - spent


def compare(
    folder: Path, media: dict[str, bytes], clip: ClipConfig, workers: int, repeats: int
) -> dict[str, list[float]]:
    """Return the ratios of the repeats."""
    data = VideoTextData(str(folder), batch_size=BATCH, num_workers=workers, clip=clip, shuffle_buffer=16)
    data.setup("fit")
    assert data.position is not None
    source = data.loaders.splits["train"].opened[0].source
    batches, steps = iter(data.train_dataloader()), len(media) // BATCH
    found: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(repeats):
        for _ahead in range(AHEAD):  # these were decoded while the clock stood still
            batch = next(batches)
        first = batch["position"]
        indices = [index for step in range(first, first + steps) for index in data.position.plan.batch(step)]
        work = [(media[source.key(index.shard, index.sample)], index.number) for index in indices]
        taken, plain = loader_seconds(batches, steps), plain_seconds(work, clip, workers)
        for kind, ours, theirs in zip(found, taken, plain, strict=True):
            found[kind].append(theirs / ours)
    data.teardown()
    return found


def summary(ratios: list[float]) -> dict[str, float]:
    return {name: round(of(ratios), 3) for name, of in (("median", median), ("least", min), ("largest", max))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"size": args.size, "clips": args.clips}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        media = write_shards(folder, args.clips, args.size, args.seconds, args.fps)
        for way, sparse in WAYS.items():
            clip = ClipConfig(height=args.size, width=args.size, sparse_frames=sparse)
            for workers in args.workers:
                found = compare(folder, media, clip, workers, args.repeats)
                name = f"{way}, {workers} workers, over plain decoding"
                result[name] = {kind: summary(ratios) for kind, ratios in found.items()}
                sys.stderr.write(f"{name}: {result[name]}\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
