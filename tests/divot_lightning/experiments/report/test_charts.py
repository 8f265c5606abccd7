"""Charts draw finite points inside their frame and refuse what cannot be drawn."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.report.charts import HEIGHT, MAX_POINTS, WIDTH, chart_svg, nice_ticks, thin_out
from divot_lightning.experiments.report.content import Chart, Line


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in found.split()] for found in re.findall(r'points="([^"]*)"', svg)
    ]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_lines_stay_inside_and_keep_their_order(logarithmic):
    steps = list(range(500))
    lines = [Line(str(k), steps, [k / (1 + s) for s in steps]) for k in range(1, 9)]
    svg = chart_svg(Chart("loss <b>", lines, logarithmic=logarithmic))
    ElementTree.fromstring(svg)
    drawn = points(svg)
    assert len(drawn) == 8
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for line in drawn for x, y in line)
    for line in drawn:
        assert [x for x, _ in line] == sorted(x for x, _ in line)
        assert [y for _, y in line] == sorted(y for _, y in line)  # falling values go down, and y grows downwards
    assert "<b>" not in svg


def test_points_that_are_not_finite_are_left_out():
    svg = chart_svg(Chart("loss", [Line("a", [0, 1, 2], [1.0, math.nan, 0.5]), Line("b", [0], [math.inf])]))
    assert [len(line) for line in points(svg)] == [2]


def test_one_point_and_a_flat_line_can_be_drawn():
    assert "<circle" in chart_svg(Chart("one", [Line("a", [5], [2.0])]))
    assert points(chart_svg(Chart("flat", [Line("a", [0, 1], [0.0, 0.0])])))


def test_thinning_keeps_the_mean_and_the_limit():
    line = Line("a", list(range(1000)), [float(x % 7) for x in range(1000)])
    thin = thin_out(line)
    assert len(thin.x) <= MAX_POINTS
    assert sum(thin.x) / len(thin.x) == pytest.approx(499.5)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 17.0), (0.0012, 0.0047), (1e5, 3e6)])
def test_ticks_are_evenly_spaced_inside_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert low <= ticks[0] <= ticks[-1] <= high
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps))


def test_nothing_to_draw_is_refused():
    with pytest.raises(UserError, match="'empty' has no finite point"):
        chart_svg(Chart("empty", [Line("a", [], [])]))


def test_logarithm_of_a_negative_loss_is_refused():
    with pytest.raises(UserError, match=r"holds -2\.5"):
        chart_svg(Chart("nll", [Line("a", [0, 1], [1.0, -2.5])], logarithmic=True))
