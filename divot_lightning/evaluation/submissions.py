"""Files for the servers of benchmarks that keep their answers to themselves. No torch in here."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divot_datamodules.benchmarks.items import BenchmarkItem
from divot_lightning.evaluation.predictions import Row

FALLBACK = 2
"""Place of the option that stands for an answer without a choice; servers take no empty place."""


def write_submission(benchmark: str, folder: Path, items: Sequence[BenchmarkItem], rows: Sequence[Row]) -> Path | None:
    """Writes what the server of EgoSchema or of the Perception Test takes, where answers are not public.

    EgoSchema has two: Kaggle takes the CSV, the authors' server the JSON {q_uid: index of the option} beside it.

    Args:
        benchmark: Its name.
        folder: Where to.
        items: Its items.
        rows: The row of each, in the same order.

    Returns:
        The file; None where no server is needed.
    """
    if all(item.choice is not None for item in items):
        return None
    chosen = [FALLBACK if row.get("chosen") is None else int(row["chosen"]) for row in rows]
    if benchmark == "egoschema":
        path = folder / "submission.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["q_uid", "answer"])
            writer.writerows([item.id, choice] for item, choice in zip(items, chosen, strict=True))
        choices = {item.id: choice for item, choice in zip(items, chosen, strict=True)}
        path.with_suffix(".json").write_text(json.dumps(choices), encoding="utf-8")
        return path
    if benchmark == "perception_test":
        videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for item, choice in zip(items, chosen, strict=True):
            video, _, number = item.id.rpartition("/")
            videos[video].append({"id": int(number), "answer_id": choice, "answer": item.options[choice]})
        path = folder / "submission.json"
        path.write_text(json.dumps(videos), encoding="utf-8")
        return path
    return None
