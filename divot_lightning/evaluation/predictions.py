"""Store the prediction for each item as jsonl, so that an evaluation that was stopped can be resumed.

Every process appends to a file of its own, `predictions-rank0.jsonl` and so on, one line per finished item. When all
items are finished, they are written in order to `predictions.jsonl`. The number of processes may change between two
starts. Raw answers and measurements are kept for ever. What a rule, a judge or a metric derives from them is computed
again by every start.
No torch in here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.protocol import differing
from divot_lightning.io.file_locks import writer_lock
from divot_lightning.io.files import write_atomically
from divot_lightning.io.jsonl import LineFile, Row, read_object, read_rows, write_rows
from divot_lightning.io.output_files import make_folder, writing_to
from divot_lightning.io.renamed import ENTRIES

MERGED = "predictions.jsonl"
PROTOCOL = "protocol.json"
LOCK = "evaluation.lock"

DERIVED = ("chosen", "judged", "judge_score", "judge_reply", "scores")
"""Entries of a row that scoring writes. They are never read back, since they belong to the rule that wrote them."""
NOT_COMPARED = ("videos", "items_without_video", "clip_model", "video_features", "toy_features")
"""Parts of older protocols that decide no prediction: which items there are, and how they are measured."""


class PredictionStore:
    """The folder of an evaluation.

    Args:
        folder: Is created if it does not exist.
        rank: Number of this process.

    Raises:
        UserError: The folder cannot be created.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        make_folder(folder)
        self._file = LineFile(folder / f"predictions-rank{rank}.jsonl")

    def check_protocol(self, protocol: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
        """Record the protocol of the predictions; if one is recorded already, check that it is the same.

        Args:
            protocol: What decides the predictions, as JSON values.
            complete: Whether all items are predicted; the versions of libraries may then differ.

        Returns:
            The protocol of the predictions in the folder.

        Raises:
            UserError: The predictions in the folder have another protocol; the message names what differs.
        """
        path = self.folder / PROTOCOL
        current: dict[str, Any] = json.loads(json.dumps(protocol))
        if not path.is_file():
            write_atomically(path, json.dumps(protocol, indent=1, ensure_ascii=False) + "\n")
            return current
        recorded = {name: value for name, value in read_object(path).items() if name not in NOT_COMPARED}
        # The hashes identify the model, so its folder may have moved.
        allowed = ("model.run", "versions.") if complete else ("model.run",)
        found = differing([recorded, current]).items()
        different = {name: values for name, values in found if not name.startswith(allowed)}
        if different:
            name, (before, now) = next(iter(different.items()))
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise UserError(
                f"{self.folder} holds predictions of another protocol{more}:\n"
                f"{name} was {before!r:.120}, now it is {now!r:.120}\nGive another folder: --output FOLDER"
            )
        return recorded

    def rows(self) -> dict[str, Row]:
        """Read the rows of finished items, by item, without the entries that scoring wrote."""
        paths = sorted(self.folder.glob("predictions-rank*.jsonl"))
        merged = self.folder / MERGED
        rows = [row for path in ([merged] if merged.is_file() else []) + paths for row in read_predictions(path)]
        return {row["id"]: {name: value for name, value in row.items() if name not in DERIVED} for row in rows}

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows of finished items; they are in the file when this returns."""
        self._file.append(rows)

    def merge(self, rows: Sequence[Row]) -> None:
        """Write the scored rows in order, then all other finished ones; remove the files of the processes."""
        scored = {row["id"] for row in rows}
        others = [row for item, row in self.rows().items() if item not in scored]
        write_rows(self.folder / MERGED, [*rows, *others])
        for path in self.folder.glob("predictions-rank*.jsonl"):
            path.unlink()

    def close(self) -> None:
        """Close the file of this process."""
        self._file.close()


def read_predictions(path: Path) -> list[Row]:
    """Read the rows of finished items, with today's names of their entries.

    Raises:
        UserError: A line is damaged, or names no item.
    """
    rows = [{ENTRIES.get(name, name): value for name, value in row.items()} for row in read_rows(path)]
    without = next((number for number, row in enumerate(rows, 1) if "id" not in row), None)
    if without is not None:
        raise UserError(f"line {without} of {path} names no item; remove that line to have its item predicted again")
    return rows


@contextmanager
def written_alone(folder: Path, rank: int = 0) -> Iterator[PredictionStore]:
    """Yield the store of an evaluation, which no other evaluation writes within the block.

    Args:
        folder: Its folder.
        rank: Number of this process; the first process of an evaluation holds the lock for all of them.

    Raises:
        UserError: Another evaluation writes into the folder, or it cannot be created.
    """
    store = PredictionStore(folder, rank)
    lock = None if rank else writer_lock(folder / LOCK)
    try:
        with writing_to(folder):
            yield store
    finally:
        if lock is not None:
            lock.release()
