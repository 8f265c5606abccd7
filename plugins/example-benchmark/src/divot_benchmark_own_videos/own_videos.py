"""A benchmark of a folder with `questions.jsonl` and videos."""

import json
from pathlib import Path
from typing import Any, ClassVar

from divot_lightning.errors import UserError
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData, BenchmarkItem


class OwnVideos(Benchmark):
    """Questions about the videos of a folder; an answer is right if it is one of the accepted ones.

    Args:
        brief: Whether the prompt asks for a brief answer.
    """

    metrics: ClassVar[tuple[str, ...]] = ("accepted_answers",)

    def __init__(self, brief: bool = True) -> None:
        self.brief = brief

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read `questions.jsonl`, one {"video", "question", "answers"} per line.

        Args:
            data: Folder with that file and the videos.
            split: "test", the only one.

        Raises:
            UserError: The file is missing, or a line lacks a field.
        """
        file = Path(data) / "questions.jsonl"
        if not file.is_file():
            raise UserError(f"own-videos: {file} is not there; write one question per line, see the README")
        lines = file.read_text(encoding="utf-8").splitlines()
        items = tuple(_item(Path(data), number, line) for number, line in enumerate(lines))
        return BenchmarkData(items, {file.name: file})

    def prompt(self, item: BenchmarkItem, text: str | None = None) -> str | None:
        """Return the question, with a request for a brief answer."""
        prompt = super().prompt(item, text)
        return f"{prompt} Answer in a few words." if self.brief and text is None else prompt


def _item(folder: Path, number: int, line: str) -> BenchmarkItem:
    try:
        entry: dict[str, Any] = json.loads(line)
        video, question, answers = entry["video"], entry["question"], tuple(entry["answers"])
    except (ValueError, KeyError, TypeError) as error:
        where = f"own-videos: line {number + 1} of {folder / 'questions.jsonl'}"
        raise UserError(f"{where} is no {{video, question, answers}}: {type(error).__name__} {error}") from error
    path = folder / video
    media = path if path.is_file() else None
    return BenchmarkItem(str(number), media, video, question, answer=answers[0], references=answers)
