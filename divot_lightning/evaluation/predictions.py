"""What was predicted for each item, as jsonl: appended by every process, gone on with after a stop, merged at the end.

A process appends to a file of its own, `predictions-rank0.jsonl` and so on, one line per finished item; when all items
are finished, they are written in order to `predictions.jsonl`. The number of processes may change between two starts.
No torch in here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from divot_lightning.errors import UserError
from divot_lightning.evaluation.protocol import differing

MERGED = "predictions.jsonl"
SETTINGS = "protocol.json"

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Reads the whole lines of a jsonl file; a last one that was cut off by a kill is left out.

    Raises:
        UserError: A line in the middle is broken.
    """
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"line {number} of {path} is no JSON; remove that line to have its item done again"
            ) from error
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes a jsonl file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text("".join(_line(row) for row in rows), encoding="utf-8")
    unfinished.replace(path)


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class PredictionStore:
    """The folder of an evaluation.

    Args:
        folder: Is made.
        rank: Number of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = None

    def claim(self, protocol: Mapping[str, Any]) -> None:
        """Records what decides the predictions, or checks that the folder's were made in the same way.

        Raises:
            UserError: The folder's were made in another way; names what differs.
        """
        path = self.folder / SETTINGS
        if not path.is_file():
            unfinished = path.with_name(f".{path.name}.unfinished")
            unfinished.write_text(json.dumps(protocol, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            unfinished.replace(path)
            return
        different = differing([json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(protocol))])
        if different:
            name, (before, now) = next(iter(different.items()))
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise UserError(
                f"{self.folder} holds predictions that were made in another way{more}:\n"
                f"{name} was {before!r:.120}, now it is {now!r:.120}\nGive another folder: --output FOLDER"
            )

    def rows(self) -> dict[str, Row]:
        """Reads what is finished, by item."""
        paths = sorted(self.folder.glob("predictions-rank*.jsonl"))
        merged = self.folder / MERGED
        rows = [row for path in ([merged] if merged.is_file() else []) + paths for row in read_rows(path)]
        return {row["id"]: row for row in rows}

    def append(self, rows: Iterable[Row]) -> None:
        """Adds finished items; they are on the disk when this returns."""
        if self._file is None:
            self._file = self._opened()
        self._file.write("".join(_line(row) for row in rows).encode("utf-8"))
        self._file.flush()

    def merge(self, rows: Sequence[Row]) -> None:
        """Writes all finished items in order, and removes the files of the processes."""
        write_rows(self.folder / MERGED, rows)
        for path in self.folder.glob("predictions-rank*.jsonl"):
            path.unlink()

    def _opened(self) -> BinaryIO:
        path = self.folder / f"predictions-rank{self.rank}.jsonl"
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):  # the process was killed in the middle of a line
                path.write_bytes(content[:whole])
        return path.open("ab")

    def close(self) -> None:
        """Closes the file of this process."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "PredictionStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
