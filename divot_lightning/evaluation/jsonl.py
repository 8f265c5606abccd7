"""Files of JSON, one value per line, that survive being cut off at any byte. No torch in here."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from divot_lightning.errors import UserError

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read the whole lines of a jsonl file; a last one that was cut off by a kill is left out.

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
    """Write a jsonl file whole or not at all."""
    write_text(path, "".join(_line(row) for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class LineFile:
    """A jsonl file that is added to; opened at the first row.

    Args:
        path: Of the file; a line that a kill cut off at its end is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; they are on the disk when this returns."""
        if self._file is None:
            self._file = self._opened()
        self._file.write("".join(_line(row) for row in rows).encode("utf-8"))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self.path.is_file():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):  # the process was killed in the middle of a line
                self.path.write_bytes(content[:whole])
        return self.path.open("ab")
