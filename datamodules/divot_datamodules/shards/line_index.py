"""Where the lines of a jsonl file are, kept in a file that all processes of a machine map into memory."""

import os
import zlib
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from divot_datamodules.shards.storage import LocalShard
from divot_lightning.io.files import atomic_file, text_sha256
from divot_lightning.io.output_files import writing_to

SUFFIX = ".lines.npy"


def line_index(file: LocalShard, folder: Path | None) -> NDArray[np.int64]:
    """Return start, length, checksum and number of each line that is not empty, int64 (lines, 4).

    Args:
        file: The jsonl file.
        folder: Keeps the result: the file is read only once, as long as its size and time of change stay, and what is
            kept is mapped, so that processes of a machine share its memory. None keeps nothing.
    """
    if folder is None:
        return scan_lines(file.path)
    path, state = (text_sha256(text)[:16] for text in (os.path.abspath(file.path), f"{file.size} {file.stamp}"))
    kept = folder / f"{path}-{state}{SUFFIX}"
    lines = _mapped(kept)
    if lines is not None:
        return lines
    lines = scan_lines(file.path)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{path}-*{SUFFIX}"):
            stale.unlink(missing_ok=True)
        with atomic_file(kept) as unfinished, unfinished.open("wb") as opened:
            np.save(opened, lines, allow_pickle=False)
    return lines if (mapped := _mapped(kept)) is None else mapped


def scan_lines(path: str | Path) -> NDArray[np.int64]:
    """Read a jsonl file and return what `line_index` does; it takes 32 bytes of memory per line."""
    facts, start = array("q"), 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.rstrip(b"\r\n")
            if content.strip():
                facts.extend((start, len(content), zlib.crc32(content), number))
            start += len(line)
    return np.frombuffer(facts, np.int64).reshape(-1, 4)


def _mapped(kept: Path) -> NDArray[np.int64] | None:
    """Map what was kept; None if it is not there, damaged or empty, which cannot be mapped."""
    try:
        lines: NDArray[np.int64] = np.load(kept, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return lines if lines.dtype == np.int64 and lines.shape[1:] == (4,) else None
