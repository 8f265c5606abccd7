"""Define the content of a report, before it becomes HTML.

Shape letters: F frames, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Headline:
    """A number at the top of the report.

    Attributes:
        label: What it is.
        value: Its text, such as `97 %`.
        target: The text of its target, empty without a target.
        met: Whether the target is met, None without a target.
    """

    label: str
    value: str
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: What it shows.
        x: In ascending order.
        y: As many values.
        colour: Index of its colour; curves that belong together may share one. None takes the index of the curve.
        key: Its text in the legend, where curves of one text have one entry; "" takes the name.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None
    key: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        title: Heading.
        lines: The curves.
        x_label: Unit of x.
        logarithmic: Whether the y axis is logarithmic; then all values must be positive.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    logarithmic: bool = False


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, whether it is good or bad (None: no colour), and further lines in small print."""

    text: str
    good: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Attributes:
        title: Heading.
        columns: Headings of the columns.
        rows: Cells, one per column; a plain string is a cell without colour.
        note: How the numbers were measured.
        prose: Whether the cells hold sentences, whose lines are wrapped, instead of numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    prose: bool = False


@dataclass(frozen=True)
class Picture:
    """A moving picture.

    Attributes:
        video: uint8 (F, 3, H, W).
        label: Text below it.
        good: Whether it shows what it should, None if nothing judged it.
        frames_per_second: Presentation rate; the default is that of Divot's clips and of the toy world.
    """

    video: Pixels
    label: str = ""
    good: bool | None = None
    frames_per_second: float = 8.0


@dataclass(frozen=True)
class PictureRow:
    """Pictures that belong together, such as a model's clips for one prompt."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Answered:
    """A clip with a model's texts about it.

    Attributes:
        video: uint8 (F, 3, H, W).
        texts: Rows of prompt, target, prediction, and whether the prediction is right.
        frames_per_second: As in `Picture`.
    """

    video: Pixels
    texts: Sequence[tuple[str, str, str, bool]]
    frames_per_second: float = 8.0


@dataclass(frozen=True)
class ItemScores:
    """The values of a score for each clip, caption or question, so that a reader can compare any two combinations.

    Attributes:
        labels: Names of the items.
        values: For each combination of variants one value per item, the mean over seeds, and for each trial its own;
            None where there is none.
    """

    labels: Sequence[str]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Report:
    """A whole report. Empty parts are not shown.

    Attributes:
        title: Heading.
        introduction: One paragraph.
        headlines: Numbers at the top.
        tables: Score tables.
        reconstructions: Rows of original beside reconstruction.
        answers: Captions and answers on clips.
        generations: Rows of generated clips, one per prompt and system.
        items: By score, its values for single items.
        charts: Loss curves.
        steps: Table of the steps' times.
        conditions: Hardware, versions, settings, as (name, value).
        notes: Sentences that a reader needs to judge the numbers.
    """

    title: str
    introduction: str = ""
    headlines: Sequence[Headline] = ()
    tables: Sequence[Table] = ()
    reconstructions: Sequence[PictureRow] = ()
    answers: Sequence[Answered] = ()
    generations: Sequence[PictureRow] = ()
    items: Mapping[str, ItemScores] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    steps: Table | None = None
    conditions: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)
