"""Read files of prompts, one per line: text, or a JSON object. No torch in here."""

import json
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError, require_seed

HELP = "file of prompts, one per line: text, or JSON such as {example}; if repeated, it does only what is missing"


def read_prompts(path: str | Path, required: str, **optional: type) -> list[dict[str, Any]]:
    """Read a file of prompts.

    Args:
        path: The file, UTF-8. Blank lines are ignored.
        required: Name that a JSON object must have, with a text. A line that is no JSON object is this text.
        optional: Names that it may have, with the type of their values.

    Returns:
        The entries in order.

    Raises:
        UserError: The file cannot be read or has no prompt, or a line lacks a name, has another one, or a wrong value.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a file of prompts: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _entry(line.strip(), f"line {number} of {path}", required)
        allowed = {required: str, **optional}
        text = entry.get(required, "")
        unknown = [name for name in entry if name not in allowed]
        wrong = [name for name in entry if name in allowed and type(entry[name]) is not allowed[name]]
        if unknown or wrong or not text.strip():
            named = f"the unknown name {unknown[0]}" if unknown else f"no fitting {(wrong or [required])[0]}"
            names = ", ".join(f"{name} ({kind.__name__})" for name, kind in allowed.items())
            raise UserError(f"line {number} of {path} has {named}\nits names are {names}")
        require_seed(entry.get("seed", 0), f"the seed in line {number} of {path}")
        entries.append(entry)
    if not entries:
        raise UserError(f"{path} has no prompt; write one per line")
    return entries


def _entry(line: str, where: str, first: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {first: line}
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise UserError(f"{where} begins like JSON and is none: {error}") from error
