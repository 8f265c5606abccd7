"""Write the clips that all loaders read: mp4 files, tars of them, and the formats of MosaicML and Energon.

It imports nothing of this library; `run.py` starts it in the environment of the other loaders.
"""

import argparse
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import torch

SIZES = ((256, 256), (360, 640), (480, 854))
"""Height and width of the videos, in turn, of 5 to 10 seconds."""
SHARDS, FPS, KEYFRAMES = 4, 24, 48


def write_video(path: Path, number: int, seconds: int) -> None:
    """Write a video of a smooth random picture that moves under a little noise, with B-frames as in common files."""
    height, width = SIZES[number % len(SIZES)]
    rng = np.random.default_rng(number)
    coarse = torch.from_numpy(rng.integers(0, 255, (1, 3, height // 18, width // 20)).astype(np.float32))
    picture = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    pixels = picture.clamp(0, 239).to(torch.uint8).permute(1, 2, 0).numpy()
    noise = rng.integers(0, 16, (height, width, 3)).astype(np.uint8)
    with av.open(str(path), "w") as output:
        options = {"preset": "veryfast", "crf": "23", "g": str(KEYFRAMES)}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in range(FPS * seconds):
            shown = np.roll(pixels, (frame, 2 * frame), (0, 1)) + np.roll(noise, 7 * frame, 1)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")))
        output.mux(stream.encode(None))


def write_tars(folder: Path, paths: list[Path]) -> None:
    folder.mkdir()
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for path in paths[number::SHARDS]:
                data = path.read_bytes()
                entry = tarfile.TarInfo(path.name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_mds(folder: Path, paths: list[Path]) -> None:
    from streaming import MDSWriter

    size = sum(path.stat().st_size for path in paths) // SHARDS
    with MDSWriter(out=str(folder), columns={"mp4": "bytes"}, size_limit=size) as writer:
        for path in paths:
            writer.write({"mp4": path.read_bytes()})


def index_for_energon(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("energon")), "prepare", str(folder), "--non-interactive"]
    parts = ["--split-parts", "train:.*", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    subprocess.run([*command, *parts], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.folder / "files").mkdir(parents=True)
    paths = [args.folder / "files" / f"k{number:05d}.mp4" for number in range(args.videos)]
    for number, path in enumerate(paths):
        write_video(path, number, seconds=5 + number % 6)
    write_tars(args.folder / "tars", paths)
    write_tars(args.folder / "energon", paths)
    write_mds(args.folder / "mds", paths)
    index_for_energon(args.folder / "energon")


if __name__ == "__main__":
    main()
