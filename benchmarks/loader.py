"""Frames per second of the data module against decoding the same clips one after another.

Run: python benchmarks/loader.py [--size 256] [--clips 64] [--workers 0 1 2]

All figures come from one run on one machine; the ratios are the result, and JSON on stdout holds both.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from divot_datamodules.clip_sampling import ClipSettings, decode_clip
from divot_datamodules.decoding import decode_frames, probe
from divot_datamodules.shard_reading import expand_shards, read_shard
from divot_datamodules.shard_writing import ShardFolder
from divot_datamodules.video_text import VideoTextData
from divot_datamodules.video_writing import encode_video

SHARDS = 4


def moving_picture(frames: int, size: int, seed: int) -> np.ndarray:
    """A smooth random picture that slides, so that the codec has something to do: uint8 (F, 3, H, W)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (1, 3, 16, 16)).astype(np.float32)
    picture = torch.nn.functional.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic")[0]
    shifts = [torch.roll(picture, (frame, 2 * frame), (1, 2)) for frame in range(frames)]
    return torch.stack(shifts).clamp(0, 255).to(torch.uint8).numpy()


def write_shards(folder: Path, clips: int, size: int, seconds: int, fps: int) -> None:
    """Writes clips of another rate than the one that is sampled, as real videos have it."""
    shards = ShardFolder(folder, kind="video", settings={})
    step = -(-clips // SHARDS)
    for number in range(SHARDS):
        keys = range(number * step, min((number + 1) * step, clips))
        videos = ((f"k{key}", moving_picture(seconds * fps, size, key)) for key in keys)
        shards.write(number, ((key, {"mp4": encode_video(v, fps, pixel_format="yuv420p")}) for key, v in videos))
    shards.finish()


def frames_per_second(frames: int, started: float) -> float:
    return frames / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    clip = ClipSettings(height=args.size, width=args.size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        write_shards(folder, args.clips, args.size, args.seconds, args.fps)
        media = [raw.members["mp4"] for shard in expand_shards(folder) for raw in read_shard(shard)]
        started = time.perf_counter()
        for data in media:
            decode_clip(data, clip, np.random.default_rng(0))
        plain = frames_per_second(len(media) * clip.frames, started)
        started = time.perf_counter()
        for data in media:
            count = round(probe(data).duration * args.fps)
            decode_frames(data, [(index + 0.5) / args.fps for index in range(count)], (args.size, args.size))
        whole = frames_per_second(len(media) * clip.frames, started)
        result: dict[str, object] = {"sequential": round(plain, 1), "needed_over_whole": round(plain / whole, 3)}
        for workers in args.workers:
            module = VideoTextData(str(folder), batch_size=8, num_workers=workers, clip=clip, shuffle_buffer=16)
            module.setup("fit")
            batches = iter(module.train_dataloader())
            next(batches)  # starts the workers
            started = time.perf_counter()
            steps = args.clips // 8
            for _ in islice(batches, steps):
                pass
            rate = frames_per_second(steps * 8 * clip.frames, started)
            result[f"workers_{workers}"] = round(rate, 1)
            result[f"workers_{workers}_over_sequential"] = round(rate / plain, 3)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
