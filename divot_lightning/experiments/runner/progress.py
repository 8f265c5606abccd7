"""Read the progress of steps from their logs, and show it as lines."""

import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from divot_lightning.training.run_folder import METRICS

BAR_WIDTH = 20
TAIL_BYTES = 4096
PLAIN_REFRESH_SECONDS = 30.0
"""Seconds between two lines of a step, if the output is a file or a pipe."""
_BAR = re.compile(r"(\d+)/(\d+) \[")
_TRAINING = re.compile(r"steps (\d+) to (\d+)")


@dataclass(frozen=True)
class Progress:
    """The progress of a step: `done` of `total` units of work."""

    done: int
    total: int


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def read_progress(log: Path, run: Path | None = None) -> Progress | None:
    """Read the progress of a process from its log and its metrics.

    Args:
        log: Its output; the last tqdm bar in it is read.
        run: Its run folder if it trains; the last step in `metrics.csv` is newer than the bar in the log.

    Returns:
        The progress; None as long as neither shows any.
    """
    text = _tail(log)
    bars = _BAR.findall(text)
    progress = Progress(int(bars[-1][0]), int(bars[-1][1])) if bars else None
    training = _TRAINING.findall(text)
    if run is None or not (progress or training):
        return progress
    last = _tail(run / METRICS).rstrip().rpartition("\n")[2].partition(",")[0]
    step = int(last) + 1 if last.isdigit() else 0
    total = progress.total if progress else int(training[-1][1])
    return Progress(min(total, max(step, progress.done if progress else 0)), total)


def clock(seconds: float) -> str:
    """Format a time as m:ss, or as h:mm:ss from one hour on.

    >>> clock(75), clock(3600)
    ('1:15', '1:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StepMeter:
    """The line of one running step: bar, rate and time left.

    Args:
        name: Its name.
        position: Such as `3/20`.
        started: Time on the monotonic clock.
    """

    def __init__(self, name: str, position: str, started: float) -> None:
        self.name, self.position, self.started = name, position, started
        self.first: tuple[float, int] | None = None
        self.progress: Progress | None = None

    def update(self, progress: Progress | None, now: float) -> None:
        """Set the progress at a time. The rate counts from the first progress seen: a resumed run starts above 0."""
        if progress is not None and self.first is None:
            self.first = (now, progress.done)
        self.progress = progress or self.progress

    def line(self, now: float) -> str:
        """Return the line, without a line end."""
        head = f"{self.position:>6}  {self.name:<32}"
        elapsed = f"elapsed {clock(now - self.started)}"
        if self.progress is None or self.first is None or not self.progress.total:
            return f"{head} [{'.' * BAR_WIDTH}]  starting  {elapsed}"
        done, total = self.progress.done, self.progress.total
        filled = int(BAR_WIDTH * done / total)
        text = f"{head} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {100 * done // total:3d}%  {done}/{total}"
        seconds, units = now - self.first[0], done - self.first[1]
        if seconds > 0 and units > 0:
            rate = units / seconds
            text += f"  {rate:.1f}/s  left {clock((total - done) / rate)}"
        return f"{text}  {elapsed}"


class Display:
    """Show running steps: redrawn in place on a terminal, otherwise a line now and then.

    Args:
        stream: Where the lines go; stderr by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.drawn = 0
        self.shown = time.monotonic()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._clear()
        self.stream.write(text + "\n")
        self.stream.flush()

    def show(self, meters: Sequence[StepMeter], footer: str) -> None:
        """Show the lines of the running steps and a footer."""
        now = time.monotonic()
        if not self.live and now - self.shown < PLAIN_REFRESH_SECONDS:
            return
        self.shown = now
        self._clear()
        lines = [meter.line(now) for meter in meters] + [footer]
        if self.live:  # a line that wraps would count as two lines when it is redrawn
            columns = shutil.get_terminal_size().columns - 1
            lines = [line[:columns] for line in lines]
        self.stream.write("".join(line + "\n" for line in lines))
        self.stream.flush()
        self.drawn = len(lines) if self.live else 0

    def _clear(self) -> None:
        if self.drawn:
            self.stream.write(f"\x1b[{self.drawn}F\x1b[J")
            self.drawn = 0
