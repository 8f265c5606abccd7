"""Render a report as one HTML file without other files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from divot_lightning.experiments.report.charts import NUM_COLOURS, chart_svg, legend
from divot_lightning.experiments.report.content import Answered, Cell, ItemScores, Picture, PictureRow, Report
from divot_lightning.experiments.report.pictures import data_uri
from divot_lightning.io.files import write_atomically


def _as_cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _judged(rows: Sequence[PictureRow]) -> bool:
    return any(picture.good is not None for row in rows for picture in row.pictures)


def _moving(item: Picture | Answered) -> str:
    return data_uri(item.video, item.frames_per_second)


def _items_json(items: Mapping[str, ItemScores]) -> Markup:
    return htmlsafe_json_dumps({name: asdict(each) for name, each in items.items()})


def _marked(note: str) -> Markup:
    """Return a note with its `commands` in the font of code."""
    parts = note.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts))


def render_report(report: Report) -> str:
    """Return the report as HTML with styles, charts and moving pictures inside; nothing is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("divot_lightning.experiments.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["moving"] = _moving
    environment.filters["judged"] = _judged
    environment.filters["cell"] = _as_cell
    environment.filters["marked"] = _marked
    environment.filters["items_json"] = _items_json
    environment.globals["legend"] = legend
    environment.filters["chart"] = lambda chart: Markup(chart_svg(chart))
    return environment.get_template("template.html.j2").render(report=report, num_colours=NUM_COLOURS)


def write_report(report: Report, path: Path) -> None:
    """Write the report as a file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_report(report))
