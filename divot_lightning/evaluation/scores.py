"""Scores with their protocol, and their file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError, first_of
from divot_lightning.io.files import write_atomically

SCORES = "scores.json"
"""File of scores in the folder of an evaluation."""

FORMAT = 2
"""Version of the file of scores; the first version was a list."""


@dataclass(frozen=True)
class Score:
    """One measured number and what it means.

    Attributes:
        name: What was measured, such as `reconstruction/shape`.
        value: The number; NaN if it is undefined (no clip to measure it on).
        count: How many clips, captions or questions it was measured on.
        protocol: Everything that decides the number besides the model: data, split, sampling settings, rule for
            invalid clips; JSON values only. Two scores can be compared only if their protocols are equal.
        model: The measured model: content hashes of its weights, and where they were; JSON values only.
    """

    name: str
    value: float
    count: int
    protocol: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


def save_scores(scores: Sequence[Score], path: Path) -> None:
    """Write scores as JSON, whole or not at all.

    A protocol or a model that many scores have is written once.
    """
    protocols, models = _distinct([score.protocol for score in scores]), _distinct([score.model for score in scores])
    entries = [
        {
            "name": score.name,
            "value": score.value,
            "count": score.count,
            "protocol": protocols.index(score.protocol),
            "model": models.index(score.model),
        }
        for score in scores
    ]
    content = {"format": FORMAT, "scores": entries, "protocols": protocols, "models": models}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1))


def scores_of_run(run: Path) -> list[Path]:
    """Return the files of scores of the evaluations in a run folder."""
    return sorted(run.glob(f"evaluation/*/{SCORES}"))


def _distinct(values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def load_scores(path: Path) -> list[Score]:
    """Read scores that `save_scores` wrote, also in the first version of the file, a list of scores.

    Raises:
        UserError: There is no such file, it holds something else, or it has a later version.
    """
    if not path.is_file():
        evaluations = [str(file.parent) for file in scores_of_run(path.parent)]
        hint = f"evaluations of this run: {first_of(evaluations, 5)}" if evaluations else "first: divot evaluate RUN"
        raise UserError(f"there are no scores at {str(path)!r}\n{hint}")
    try:
        return _read_scores(path, json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, LookupError, TypeError) as error:
        raise UserError(f"{str(path)!r} holds no scores; give the folder of an evaluation, or its {SCORES}") from error


def _read_scores(path: Path, content: Any) -> list[Score]:
    if isinstance(content, list):
        return [Score(**entry) for entry in content]
    if content.get("format") != FORMAT:
        raise UserError(
            f"{str(path)!r} has the form {content.get('format')!r}, this version reads form {FORMAT} and lists\n"
            "Read it with the version of divot-lightning that wrote it, or measure again."
        )
    protocols, models = content["protocols"], content["models"]
    return [
        Score(**{**entry, "protocol": protocols[entry["protocol"]], "model": models[entry["model"]]})
        for entry in content["scores"]
    ]
