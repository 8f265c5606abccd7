"""Measure the time of `divot --help` beside those of `python -c pass` and of importing torch.

Run: python benchmarks/cli_start.py
"""

import statistics
import subprocess
import sys
import time

REPEATS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "divot --help": ["-m", "divot_lightning", "--help"],
    "divot fit --help": ["-m", "divot_lightning", "fit", "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def median_seconds(words: list[str]) -> float:
    """Return the median wall time of a process."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print a table of times and of ratios to `python -c pass`."""
    seconds = {name: median_seconds(words) for name, words in COMMANDS.items()}
    base = seconds["python -c pass"]
    for name, value in seconds.items():
        sys.stdout.write(f"{name:<26} {value * 1000:7.0f} ms  {value / base:6.1f} x\n")


if __name__ == "__main__":
    main()
