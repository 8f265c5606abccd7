"""Compare this library's loader with plain PyAV, torchcodec, webdataset, MosaicML streaming and Megatron-Energon.

Run: python benchmarks/loaders/run.py --environment FOLDER [--rounds 5] [--workers 0 1 2] [--ways divot webdataset]

The others are installed into FOLDER, a virtual environment of their own, if it is not there yet; --packages sets the
versions of torch and torchvision. torchcodec also needs the libraries of FFmpeg 4 to 8 from the system. Each figure is
that of a process of its own; the ways take turns, round by round. JSON on stdout has, for each number of workers and
each way, the processor time per clip in ms of all its processes, clips per second, the seconds to the first batch after
the imports, and "times_ours": the ratio of its processor time to that of this library in the same round; each as
median, smallest and largest.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loaders.ways import WAYS

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("av", "torchcodec", "webdataset", "mosaicml-streaming", "megatron-energon")
Figures = dict[str, float]


def environment(folder: Path, packages: list[str]) -> Path:
    """Return the Python of the other loaders, which are installed first if need be."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *OTHERS], check=True)
    return python


def run(python: Path, module: str, *arguments: object) -> str:
    """Run a module of this folder and return its output; then end the workers that it left."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", f"benchmarks.loaders.{module}", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, env=variables, start_new_session=True)
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if code:
            raise SystemExit(f"failed with status {code}: {' '.join(command)}")
        output.seek(0)
        return output.read()


def summary(values: list[float]) -> list[float]:
    return [round(of(values), 3) for of in (median, min, max)]


def compared(rounds: list[dict[str, Figures]]) -> dict[str, Any]:
    """Return the figures of each way over all rounds, and its processor time as a multiple of this library's."""
    result: dict[str, Any] = {}
    for way in rounds[0]:
        result[way] = {name: summary([figures[way][name] for figures in rounds]) for name in rounds[0][way]}
        if "divot" in rounds[0]:
            cost = "cpu_ms_per_clip"
            result[way]["times_ours"] = summary([figures[way][cost] / figures["divot"][cost] for figures in rounds])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--packages", nargs="+", default=["torch", "torchvision"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    others = environment(args.environment.absolute(), args.packages)
    pythons = {way: Path(sys.executable) if way == "divot" else others for way in args.ways}
    result: dict[str, object] = {"videos": args.videos, "size": args.size, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as name:
        run(others, "inputs", Path(name) / "data", "--videos", args.videos)
        for workers in args.workers:
            rounds: list[dict[str, Figures]] = []
            for _ in range(args.rounds):
                settings = ["--workers", workers, "--size", args.size, "--batches", args.batches]
                taken = {way: run(pythons[way], "measure", way, Path(name) / "data", *settings) for way in args.ways}
                rounds.append({way: json.loads(output) for way, output in taken.items()})
            result[f"{workers} workers"] = compared(rounds)
            sys.stderr.write(f"{workers} workers: {result[f'{workers} workers']}\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
