"""`divot heads`: which generation heads are installed, and which of them are broken."""

import argparse
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divot_lightning.parts.registry import LoadedHead


@dataclass(frozen=True)
class HeadRow:
    """One line of the table."""

    name: str
    class_path: str
    distribution: str
    version: str
    file: str
    """Where the class is defined; empty for a broken head."""
    summary: str
    """First line of the class's docstring; the reason for a broken head."""
    broken: bool


def main(argv: list[str]) -> int:
    """List the installed heads.

    Args:
        argv: The words after `divot heads`.

    Returns:
        0; a broken plugin is shown as such, it is no failure of this command.
    """
    argparse.ArgumentParser(
        prog="divot heads",
        description="List the installed generation heads: name for --model.head, class, distribution, version, "
        "file and what it is.",
        epilog="A head comes from the entry-point group divot_lightning.heads; see docs/write_your_own_head.md.",
    ).parse_args(argv)
    from divot_lightning.parts.registry import load_every_head

    rows = [head_row(loaded) for loaded in load_every_head()]
    sys.stdout.write(format_heads(rows))
    return 0


def head_row(loaded: "LoadedHead") -> HeadRow:
    """Describe one installed head, usable or not."""
    head = loaded.installed
    common = (head.name, head.class_path, head.distribution, head.version)
    if loaded.head_class is None:
        return HeadRow(*common, file="", summary=loaded.problem, broken=True)
    file = inspect.getsourcefile(loaded.head_class) or "unknown"
    return HeadRow(*common, file=file, summary=_first_line(loaded.head_class), broken=False)


def format_heads(rows: list[HeadRow]) -> str:
    """Lay the heads out as a table, the broken ones after it with their reasons.

    Args:
        rows: In the order to be shown.

    Returns:
        The text, with a final newline.
    """
    if not rows:
        return "no heads are installed; run `pip install -e .` in the checkout\n"
    usable = [row for row in rows if not row.broken]
    table = [("name", "class", "distribution", "version", "file")]
    table += [(row.name, row.class_path, row.distribution, row.version, row.file) for row in usable]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for position, row in enumerate(usable):
        lines.insert(2 * position + 2, f"    {row.summary}")
    for row in rows:
        if row.broken:
            lines.append(f"\nbroken: {row.name}  {row.class_path}  {row.distribution} {row.version}")
            lines += [f"    {line}" for line in row.summary.splitlines()]
    return "\n".join(lines) + "\n"


def _first_line(head_class: type) -> str:
    return (inspect.cleandoc(head_class.__doc__ or "") or "(no docstring)").splitlines()[0]
