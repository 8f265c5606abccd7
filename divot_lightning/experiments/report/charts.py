"""Draw line charts as inline SVG. Colours come from the page's style sheet, so that charts fit light and dark mode."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from statistics import fmean

from divot_lightning.errors import UserError
from divot_lightning.experiments.report.content import Chart, Line

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
NUM_COLOURS = 8
"""Number of colours in the page's style sheet; further lines repeat the colours with other dashes."""
NUM_DASHES = 4
"""Number of dash patterns in the page's style sheet; the first is a solid line."""
MAX_POINTS = 240


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers inside a range, about `count` of them.

    >>> nice_ticks(0.0, 1000.0)
    [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thin_out(line: Line) -> Line:
    """Average neighbouring points until at most `MAX_POINTS` are left; values that are not finite are dropped first."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(points) / MAX_POINTS) if points else 1
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    means = [tuple(map(fmean, zip(*group, strict=True))) for group in groups]
    return replace(line, x=[x for x, _ in means], y=[y for _, y in means])


def line_style(line: Line, index: int) -> str:
    """Return the CSS classes of a line's colour and dashes, for the curve and for its key in the legend.

    >>> line_style(Line("a", [], []), 9), line_style(Line("b", [], [], colour=2), 0)
    ('c1 d1', 'c2 d0')
    """
    colour = index if line.colour is None else line.colour
    return f"c{colour % NUM_COLOURS} d{colour // NUM_COLOURS % NUM_DASHES}"


def legend(chart: Chart) -> list[tuple[str, str]]:
    """Return style and text of each entry; curves of one text share an entry, which says how many they are.

    >>> gmm = [Line(f"gmm-seed{seed}", [0], [1.0], colour=0, key="gmm") for seed in range(2)]
    >>> legend(Chart("loss", [*gmm, Line("mse", [0], [3.0])]))
    [('c0 d0', 'gmm (2)'), ('c2 d0', 'mse')]
    """
    styles = {line.key or line.name: line_style(line, index) for index, line in enumerate(chart.lines) if line.x}
    counts = Counter(line.key or line.name for line in chart.lines if line.x)
    return [(styles[key], f"{key} ({count})" if count > 1 else key) for key, count in counts.items()]


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


class _Scale:
    """Map values to pixels along one axis."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> None:
        self.map = math.log10 if logarithmic else float
        low, high = min(map(self.map, values)), max(map(self.map, values))
        padding = (high - low) * 0.02 or abs(high) * 0.1 or 1.0
        self.low, self.high = low - padding, high + padding
        self.start, self.end, self.logarithmic = start, end, logarithmic

    def __call__(self, value: float) -> float:
        fraction = (self.map(value) - self.low) / (self.high - self.low)
        return round(self.start + fraction * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return nice_ticks(self.low, self.high)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        inside = [mark for mark in marks if self.low <= math.log10(mark) <= self.high]
        # In a narrow range the logarithm is nearly linear, and holds too few of these marks.
        return inside if len(inside) >= 3 else nice_ticks(10**self.low, 10**self.high, 4)


def chart_svg(chart: Chart) -> str:
    """Draw a chart.

    Args:
        chart: At least one line with at least one finite point.

    Returns:
        An `<svg>` element for an HTML page; its classes are defined in the report's style sheet.

    Raises:
        UserError: There is no finite point, or a value that is not positive on a logarithmic axis.
    """
    lines = [(index, line) for index, line in enumerate(map(thin_out, chart.lines)) if line.x]
    if not lines:
        raise UserError(f"chart {chart.title!r} has no finite point to draw")
    lowest = min(min(line.y) for _, line in lines)
    if chart.logarithmic and lowest <= 0:
        raise UserError(f"chart {chart.title!r} holds {lowest}, which a logarithmic axis cannot show")
    across = _Scale([x for _, line in lines for x in line.x], LEFT, WIDTH - RIGHT)
    up = _Scale([y for _, line in lines for y in line.y], HEIGHT - BOTTOM, TOP, logarithmic=chart.logarithmic)
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
    drawn = "".join(_draw_line(line, index, across, up) for index, line in lines)
    return f"{head}{_draw_axes(across, up, chart.x_label)}{drawn}</svg>"


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_axes(across: _Scale, up: _Scale, x_label: str) -> str:
    end, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{up(tick)}" y2="{up(tick)}"/>')
        parts.append(_text(LEFT - 6, up(tick) + 4, "end", _number(tick)))
    parts += [_text(across(tick), bottom + 16, "middle", _number(tick)) for tick in across.ticks()]
    return "".join(parts) + _text(end, HEIGHT - 4, "end", x_label)


def _draw_line(line: Line, index: int, across: _Scale, up: _Scale) -> str:
    style = line_style(line, index)
    points = [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)]
    if len(points) == 1:
        return f'<circle class="dot {style}" cx="{points[0][0]}" cy="{points[0][1]}" r="3"/>'
    path = " ".join(f"{x},{y}" for x, y in points)
    title = f"<title>{escape(line.name)}</title>"
    return f'<polyline class="line {style}" points="{path}">{title}</polyline>'
