"""`divot parts`: list the installed parts, and those that are broken."""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divot_lightning.io.command_parser import CommandParser
from divot_lightning.parts.registries.kinds import REGISTRIES, find_registry

if TYPE_CHECKING:
    from divot_lightning.parts.registries.registry import LoadedPart


@dataclass(frozen=True)
class PartRow:
    """One line of the table.

    Attributes:
        name: Short name.
        class_path: Dotted path of the class.
        distribution: Name of the distribution that declares it.
        version: Version of that distribution.
        file: Where the class is defined; empty for a broken part.
        summary: First line of the docstring of the class; the reason for a broken part.
        broken: Whether the part cannot be used.
    """

    name: str
    class_path: str
    distribution: str
    version: str
    file: str
    summary: str
    broken: bool


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot parts`, and return 0: a broken part is no failure of this command."""
    parser = CommandParser(
        prog="divot parts",
        description="List the installed parts: name for recipes, class, distribution, version, file and description.",
        epilog="A part comes from an entry-point group divot_lightning.KIND; see docs/parts/KIND.md.",
    )
    parser.add_argument("kind", nargs="?", help=f"one of: {', '.join(REGISTRIES)} (default: all)")
    kind = parser.parse_args(list(argv)).kind
    registries = [find_registry(kind)] if kind else list(REGISTRIES.values())
    for registry in registries:
        if not kind:
            sys.stdout.write(f"{registry.kind} (key in recipes: {registry.key})\n")
        sys.stdout.write(format_parts([part_row(loaded) for loaded in registry.load_every()]))
    return 0


def part_row(loaded: "LoadedPart[Any]") -> PartRow:
    """Return the row of an installed part, usable or broken."""
    part = loaded.installed
    common = (part.name, part.class_path, part.distribution, part.version)
    if loaded.part_class is None:
        return PartRow(*common, file="", summary=loaded.problem, broken=True)
    file = inspect.getsourcefile(loaded.part_class) or "unknown"
    summary = (inspect.cleandoc(loaded.part_class.__doc__ or "") or "(no docstring)").splitlines()[0]
    return PartRow(*common, file=file, summary=summary, broken=False)


def format_parts(rows: Sequence[PartRow]) -> str:
    """Format parts as a table, followed by the broken ones with their reasons.

    Args:
        rows: In the order of the table.

    Returns:
        The text, with a final newline.
    """
    if not rows:
        return "none is installed; run `pip install -e .` in the checkout\n"
    usable = [row for row in rows if not row.broken]
    table = [("name", "class", "distribution", "version", "file")]
    table += [(row.name, row.class_path, row.distribution, row.version, row.file) for row in usable]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for index, row in enumerate(usable):
        lines.insert(2 * index + 2, f"    {row.summary}")
    for row in rows:
        if row.broken:
            lines.append(f"\nbroken: {row.name}  {row.class_path}  {row.distribution} {row.version}")
            lines += [f"    {line}" for line in row.summary.splitlines()]
    return "\n".join(lines) + "\n"
