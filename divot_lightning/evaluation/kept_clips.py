"""Store the clips that an evaluation made: all to be measured again, the first ones to be looked at.

Shape letters: F frames, H height, W width.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from divot_datamodules.decoding.video import Pixels
from divot_datamodules.decoding.video_writing import write_comparison
from divot_lightning.io.files import atomic_file
from divot_lightning.io.jsonl import Row

KEPT, CLIPS = "generation", "clips"


def keep_clip(folder: Path, number: int, *, clip: Pixels, original: Pixels | None = None) -> None:
    """Store the `clip` of an item, and its `original` if it is given, under the item's number, whole or not at all.

    Both are uint8 (F, 3, H, W).
    """
    path = _path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"clip": clip} if original is None else {"clip": clip, "original": original}
    with atomic_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def find_clip(folder: Path, number: int, kind: str = "clip") -> Pixels | None:
    """Return the stored clip of an item by its number; None if there is none or its file is damaged."""
    try:
        with np.load(_path(folder, number)) as arrays:
            return np.asarray(arrays[kind])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def keep_comparison(folder: Path, number: int, original: Pixels, clip: Pixels, fps: float) -> None:
    """Store a video of an original and its reconstruction side by side, both uint8 (F, 3, H, W)."""
    write_comparison(folder / KEPT / f"{number}_compare.mp4", original, clip, fps)


def _path(folder: Path, number: int) -> Path:
    return folder / CLIPS / f"{number}.npz"


def gather_clips(folder: Path, rows: Mapping[int, Row], count: int) -> None:
    """Copy the clips of the first items, and the originals that are kept, into `generation/clips.npz`.

    Their prompts go into `texts.json`.

    Args:
        folder: Of the evaluation.
        rows: The row of every item, by number.
        count: Items with a lower number are copied.
    """
    found = {number: find_clip(folder, number) for number in rows if number < count}
    clips = {number: clip for number, clip in sorted(found.items()) if clip is not None}
    if not clips:
        return
    output = folder / KEPT
    output.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {"generated": np.stack(list(clips.values()))}
    originals = [original for number in clips if (original := find_clip(folder, number, "original")) is not None]
    if len(originals) == len(clips):
        arrays["original"] = np.stack(originals)
    np.savez_compressed(output / "clips.npz", **arrays)
    texts = [{"number": number, **_described(rows[number])} for number in clips]
    (output / "texts.json").write_text(json.dumps(texts, indent=1), encoding="utf-8")


def _described(row: Row) -> Mapping[str, object]:
    scores = row.get("scores", {})
    right = next((bool(value) for name, value in scores.items() if name.rpartition("/")[2] == "all"), None)
    return {"media": row["media"], "caption": row.get("prompt", row["id"]), "right": right}
