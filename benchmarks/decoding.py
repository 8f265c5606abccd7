"""Compare decoding the frames of a clip with a plain decoder in PyAV, which seeks.

Run: python benchmarks/decoding.py [--videos FOLDER] [--height 720] [--seconds 20] [--keyframe-interval 48]

The plain decoder is what one writes without this library: one seek to the keyframe before the clip, then all frames up
to the last one of the clip; the needed ones are converted to 256 pixels. For each way to cut clips, JSON on stdout has
the median, lowest and highest ratio of its processor time to ours, and how many times fewer frames must be decoded if
every needed frame is decoded from the keyframe before it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.loaders.plain_decoder import decode_plainly
from divot_datamodules.decoding import video as decoding
from divot_datamodules.decoding.clip_sampling import ClipConfig, clip_times, sample_clip_times

SIZE = 256


def write_video(path: Path, height: int, seconds: int, fps: int, keyframe_interval: int, seed: int) -> None:
    """Write a video of a smooth random picture that moves, with B-frames as in common files."""
    width = height * 16 // 9
    cells = (1, 3, height // 18, width // 20)
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(0, 255, cells).astype(np.float32))
    picture = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    pixels = picture.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as output:
        options = {"preset": "veryfast", "crf": "20", "g": str(keyframe_interval), "keyint_min": str(keyframe_interval)}
        stream = output.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * fps):
            shifted = np.ascontiguousarray(np.roll(pixels, (number, 2 * number), (0, 1)))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        output.mux(stream.encode(None))


def frame_times(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of all frames and of the keyframes, ascending, from the packets."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start, base = stream.start_time or 0, float(stream.time_base or 1)
        packets = [p for p in container.demux(stream) if p.pts is not None]
        times = np.array([((p.pts or 0) - start) * base for p in packets])
        return np.sort(times), np.sort(times[[p.is_keyframe for p in packets]])


def shown_numbers(path: Path, times: Sequence[float]) -> list[int]:
    """Return the number of the frame that is shown at each time."""
    frames, _ = frame_times(path)
    return [max(0, int(np.searchsorted(frames, time_ + 1e-6, side="right")) - 1) for time_ in times]


def frames_to_decode(path: Path, times: Sequence[float]) -> int:
    """Count the frames from the keyframe before each needed frame up to it."""
    frames, keys = frame_times(path)
    needed: set[int] = set()
    for shown in shown_numbers(path, times):
        key = keys[int(np.searchsorted(keys, frames[shown] + 1e-6, side="right")) - 1]
        needed |= set(range(int(np.searchsorted(frames, key - 1e-6)), shown + 1))
    return len(needed)


def frames_of_one_seek(path: Path, times: Sequence[float]) -> int:
    """Count the frames from the keyframe before the first needed frame to the last needed one."""
    frames, keys = frame_times(path)
    shown = shown_numbers(path, times)
    key = keys[int(np.searchsorted(keys, frames[min(shown)] + 1e-6, side="right")) - 1]
    return max(shown) - int(np.searchsorted(frames, key - 1e-6)) + 1


def seconds_of(work: Callable[[Path, Any], object], chosen: Sequence[tuple[Path, Any]]) -> float:
    """Return the processor time of the work on all files."""
    started = time.process_time()
    for path, frames in chosen:
        work(path, frames)
    return time.process_time() - started


def compare(chosen: list[tuple[Path, list[float]]], repeats: int) -> dict[str, object]:
    """Return the ratios of one way to cut clips; both decoders run in turn."""
    ratios = []
    for _ in range(repeats):
        ours = seconds_of(lambda path, times: decoding.decode_frames(path, times, (SIZE, SIZE)), chosen)
        plain = seconds_of(lambda path, times: decode_plainly(path, times, SIZE), chosen)
        ratios.append(plain / ours)
    frames = sum(frames_of_one_seek(path, times) for path, times in chosen)
    return {
        "fewer_frames": round(frames / sum(frames_to_decode(path, times) for path, times in chosen), 2),
        "times_faster": [round(f(ratios), 2) for f in (statistics.median, min, max)],
    }


def ways(duration: float, fps: float, rng: np.random.Generator) -> dict[str, list[float]]:
    """Return the needed times of each way to cut clips."""
    dense = ClipConfig(short_videos="squeeze")
    sparse = replace(dense, sparse_frames=5)
    one = sample_clip_times(duration, fps, dense, rng)[0]
    many = [moments[number] for moments in clip_times(duration, sparse, 4) for number in sparse.frame_numbers]
    return {"16_of_n": one, "5_of_16": [one[number] for number in sparse.frame_numbers], "5_of_16_x_4_clips": many}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, help="folder of mp4 files in place of generated ones")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--height", type=int, default=360, help="pixels of the generated ones, 16:9")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--keyframe-interval", type=int, default=48, help="frames")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = sorted(args.videos.glob("*.mp4")) if args.videos else []
        for number in range(0 if paths else args.count):
            paths.append(Path(name) / f"{number}.mp4")
            write_video(paths[-1], args.height, args.seconds, args.fps, args.keyframe_interval, number)
        rng = np.random.default_rng(0)
        infos = [decoding.probe(path) for path in paths]
        plans = [ways(info.duration, info.fps, rng) for info in infos]
        result: dict[str, object] = {"files": len(paths)}
        for way in plans[0]:
            chosen = [(path, plan[way]) for path, plan in zip(paths, plans, strict=True)]
            result[way] = compare(chosen, args.repeats)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
