"""The first generated clips of an evaluation, kept to be looked at: an ablation's report puts them side by side.

Shape letters: F frames, H height, W width.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from divot_lightning.evaluation.predictions import Row
from divot_lightning.report.content import Pixels

KEPT, UNFINISHED = "generation", ".clips"


def keep_clip(folder: Path, number: int, clip_FCHW: Pixels) -> None:
    """Keeps a clip, uint8 (F, 3, H, W), of the item of a number; it is on the disk when this returns."""
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    path = folder / UNFINISHED / f"{number}.npy"
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.save(file, clip_FCHW)
    unfinished.replace(path)


def gather_clips(folder: Path, rows: Sequence[Row]) -> None:
    """Puts the clips that all processes have kept into `generation/clips.npz`, with their prompts in `texts.json`.

    Args:
        folder: Of the evaluation.
        rows: The row of every item, in order; one without a prompt to draw from has no clip.
    """
    output = folder / KEPT
    found = _gathered(output) | {int(path.stem): np.load(path) for path in (folder / UNFINISHED).glob("*.npy")}
    if not found:
        return
    output.mkdir(exist_ok=True)
    numbers = sorted(found)
    np.savez_compressed(output / "clips.npz", made=np.stack([found[number] for number in numbers]))
    texts = [{"number": number, **_described(rows[number])} for number in numbers]
    (output / "texts.json").write_text(json.dumps(texts, indent=1), encoding="utf-8")
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _gathered(output: Path) -> dict[int, Pixels]:
    """Returns what a former start with fewer items has gathered, by number."""
    if not (output / "texts.json").is_file():
        return {}
    texts = json.loads((output / "texts.json").read_text(encoding="utf-8"))
    with np.load(output / "clips.npz") as arrays:
        return {text["number"]: clip for text, clip in zip(texts, arrays["made"], strict=True)}


def _described(row: Row) -> Mapping[str, object]:
    scores = row.get("scores", {})
    right = next((bool(value) for name, value in scores.items() if name.rpartition("/")[2] == "all"), None)
    return {"caption": row["prompt"], "right": right}
