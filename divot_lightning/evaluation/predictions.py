"""What was predicted for each item, as jsonl: appended by every process, continued with after a stop, merged at the end.

A process appends to a file of its own, `predictions-rank0.jsonl` and so on, one line per finished item; when all items
are finished, they are written in order to `predictions.jsonl`. The number of processes may change between two starts.
What was said or measured is kept for ever; what a rule, a judge or a metric made of it is written anew by every start.
No torch in here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.jsonl import LineFile, Row, read_rows, write_rows, write_text
from divot_lightning.evaluation.protocol import differing

__all__ = ["DERIVED", "MERGED", "PredictionStore", "Row", "read_rows", "write_rows"]

MERGED = "predictions.jsonl"
SETTINGS = "protocol.json"

DERIVED = ("chosen", "judged", "judge_score", "judge_reply", "scores")
"""Entries of a row that scoring writes; they are never read back, so that none outlives the rule that it is from."""
NOT_COMPARED = ("videos", "items_without_video", "clip_model", "video_features", "toy_features")
"""Parts of older protocols that do not decide a prediction: which items there are, and what is measured on them."""


class PredictionStore:
    """The folder of an evaluation.

    Args:
        folder: Is made.
        rank: Number of this process.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"{folder} cannot be made ({error.strerror})"
            raise UserError(f"{problem}; give another folder: --output FOLDER") from error
        self._file = LineFile(folder / f"predictions-rank{rank}.jsonl")

    def check_protocol(self, protocol: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
        """Record what decides the predictions, or checks that the folder's were made in the same way.

        Args:
            protocol: JSON values.
            complete: Whether nothing is left to predict; other versions of libraries do no harm then.

        Returns:
            The protocol by which the folder's predictions were made.

        Raises:
            UserError: The folder's were made in another way; names what differs.
        """
        path = self.folder / SETTINGS
        current: dict[str, Any] = json.loads(json.dumps(protocol))
        if not path.is_file():
            write_text(path, json.dumps(protocol, indent=1, ensure_ascii=False) + "\n")
            return current
        recorded = json.loads(path.read_text(encoding="utf-8"))
        recorded = {name: value for name, value in recorded.items() if name not in NOT_COMPARED}
        # The hashes say which model it is, wherever it lies now.
        allowed = ("model.run", "versions.") if complete else ("model.run",)
        found = differing([recorded, current]).items()
        different = {name: values for name, values in found if not name.startswith(allowed)}
        if different:
            name, (before, now) = next(iter(different.items()))
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise UserError(
                f"{self.folder} holds predictions that were made in another way{more}:\n"
                f"{name} was {before!r:.120}, now it is {now!r:.120}\nGive another folder: --output FOLDER"
            )
        return recorded

    def rows(self) -> dict[str, Row]:
        """Read what is finished, by item, without what scoring made of it."""
        paths = sorted(self.folder.glob("predictions-rank*.jsonl"))
        merged = self.folder / MERGED
        rows = [row for path in ([merged] if merged.is_file() else []) + paths for row in read_rows(path)]
        return {row["id"]: {name: value for name, value in row.items() if name not in DERIVED} for row in rows}

    def append(self, rows: Iterable[Row]) -> None:
        """Add finished items; they are on the disk when this returns."""
        self._file.append(rows)

    def merge(self, rows: Sequence[Row]) -> None:
        """Write scored items in order, then all others that were ever finished; removes the files of the processes."""
        scored = {row["id"] for row in rows}
        others = [row for item, row in self.rows().items() if item not in scored]
        write_rows(self.folder / MERGED, [*rows, *others])
        for path in self.folder.glob("predictions-rank*.jsonl"):
            path.unlink()

    def close(self) -> None:
        """Close the file of this process."""
        self._file.close()

    def __enter__(self) -> "PredictionStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
