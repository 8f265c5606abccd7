"""Read and write files of JSON: one object, or one per line, which may be cut off at any byte. No torch in here."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from divot_lightning.errors import UserError
from divot_lightning.io.files import write_atomically
from divot_lightning.io.output_files import writing_to

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read the complete lines of a jsonl file; skip a last line that was cut off when the process was killed.

    Raises:
        UserError: A line in the middle is no JSON object.
    """
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append({**json.loads(line)})
        except (ValueError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is no JSON object; remove that line to have its item predicted again"
            ) from error
    return rows


def read_object(path: Path) -> Row:
    """Read a file that holds one JSON object.

    Raises:
        UserError: It holds something else.
    """
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: it holds no JSON object\ncopy it again, or remove it") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a jsonl file whole or not at all."""
    write_atomically(path, "".join(_line(row) for row in rows))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class LineFile:
    """A jsonl file to which rows are appended; it is opened at the first row.

    Args:
        path: Of the file. An incomplete last line, left by a process that was killed, is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; they are in the file when this returns."""
        with writing_to(self.path):
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
            complete = content.rfind(b"\n") + 1
            if complete < len(content):  # the process was killed in the middle of a line
                self.path.write_bytes(content[:complete])
        return self.path.open("ab")
