"""Write files for the servers of benchmarks whose answers are not public. No torch in here."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.items import BenchmarkItem
from divot_lightning.evaluation.predictions import Row

FALLBACK = 2
"""Index of the option that replaces an answer without a choice if the config names none; servers need an option."""


@dataclass(frozen=True)
class Submission:
    """A file for a benchmark's server.

    Attributes:
        path: The file.
        count: Number of answers in it.
        filled: How many of these chose no option.
        option: Index of the option that replaces those.
    """

    path: Path
    count: int
    filled: int
    option: int


def check_submission(benchmark: str, items: Sequence[BenchmarkItem], unparsed_as: int | None) -> None:
    """Check that every question of a submission has the option that replaces answers without a choice.

    Raises:
        UserError: A question has too few options.
    """
    option = FALLBACK if unparsed_as is None else unparsed_as
    few = next((item for item in items if option >= len(item.options)), None)
    if few is not None and needs_submission(benchmark, items):
        raise UserError(f"unparsed_as is {option}, counted from 0, but {few.id!r} has {len(few.options)} options")


def needs_submission(benchmark: str, items: Sequence[BenchmarkItem]) -> bool:
    """Return whether a file for a server is written: some answers are not public, and the server's form is known."""
    return benchmark in _WRITERS and any(item.choice is None for item in items)


def write_submission(
    benchmark: str, folder: Path, items: Sequence[BenchmarkItem], rows: Sequence[Row], unparsed_as: int | None = None
) -> Submission | None:
    """Write the file for the server of EgoSchema or of the Perception Test, if answers are not public.

    EgoSchema has two servers: Kaggle takes the CSV, the authors' server the JSON {q_uid: index of the option}.

    Args:
        benchmark: Name of the benchmark.
        folder: Folder of the file.
        items: Its items.
        rows: The scored row of each, in the same order.
        unparsed_as: Index of the option that replaces an answer without a choice; None takes `FALLBACK`.

    Returns:
        The file; None if no server is needed.
    """
    if not needs_submission(benchmark, items):
        return None
    option = FALLBACK if unparsed_as is None else unparsed_as
    chosen = [option if row.get("chosen") is None else int(row["chosen"]) for row in rows]
    path = _WRITERS[benchmark](folder, items, chosen)
    return Submission(path, len(rows), sum(row.get("chosen") is None for row in rows), option)


def _write_egoschema(folder: Path, items: Sequence[BenchmarkItem], chosen: Sequence[int]) -> Path:
    path = folder / "submission.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["q_uid", "answer"])
        writer.writerows([item.id, choice] for item, choice in zip(items, chosen, strict=True))
    choices = {item.id: choice for item, choice in zip(items, chosen, strict=True)}
    path.with_suffix(".json").write_text(json.dumps(choices), encoding="utf-8")
    return path


def _write_perception_test(folder: Path, items: Sequence[BenchmarkItem], chosen: Sequence[int]) -> Path:
    videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item, choice in zip(items, chosen, strict=True):
        video, _, number = item.id.rpartition("/")
        videos[video].append({"id": int(number), "answer_id": choice, "answer": item.options[choice]})
    path = folder / "submission.json"
    path.write_text(json.dumps(videos), encoding="utf-8")
    return path


_WRITERS = {"egoschema": _write_egoschema, "perception_test": _write_perception_test}
