"""What a recipe wants in the report: tables with targets, charts, pictures, answers. No torch in here.

A source is the name of a measurement. With `{group}` in its label, it has a row, a column or a picture for each group,
which is a combination of variants.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.recipe_shapes import as_list, as_mapping

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class TableRecipe:
    """A table of scores.

    Attributes:
        title: Heading.
        sources: Measurements by label.
        scores: Labels by name of the score: `toy/all`, or `all`, which is that of each source's own benchmark.
        scores_as_rows: Whether a row is a score; otherwise a row is a source.
        targets: Smallest good values by name of the score.
        headline: Label of the source whose targets stand at the top of the report; "" for none.
        note: How the numbers were measured.
    """

    title: str
    sources: Mapping[str, str]
    scores: Mapping[str, str]
    scores_as_rows: bool = False
    targets: Mapping[str, float] = field(default_factory=dict)
    headline: str = ""
    note: str = ""


@dataclass(frozen=True)
class ChartRecipe:
    """Curves of training that share their axes.

    Attributes:
        title: Heading; `{group}` becomes the combination.
        lines: By label, the step and its column of metrics.csv. A step in which trials differ has a curve per trial.
        per_group: Whether each combination has a chart of its own.
    """

    title: str
    lines: Mapping[str, tuple[str, str]]
    per_group: bool = False


@dataclass(frozen=True)
class PicturesRecipe:
    """Clips side by side, a row per prompt or original.

    Attributes:
        sources: Measurements by label, of the trials with the first seed.
        originals: The measurement whose originals are shown first; "" for none.
        shown: Largest number of rows.
        repeated: How often the most frequent prompt is shown in a row for each source; 0 for none.
    """

    sources: Mapping[str, str]
    originals: str = ""
    shown: int = 6
    repeated: int = 0


@dataclass(frozen=True)
class AnswersRecipe:
    """Clips with texts about them.

    Attributes:
        originals: A measurement of reconstructions, which has the original clips.
        captions: The measurement of captions.
        questions: The measurement of answers; "" for none.
        shown: Largest number of clips.
    """

    originals: str
    captions: str
    questions: str = ""
    shown: int = 6


@dataclass(frozen=True)
class ReportRecipe:
    """What the report shows besides the comparison of variants.

    Attributes:
        tables: Tables of scores.
        charts: Curves.
        reconstructions: Originals beside their reconstructions.
        generations: Generated clips.
        answers: Captions and answers.
        minutes: Target of the wall time; None for none.
        gib: Target of the peak memory; None for none.
        notes: Sentences that a reader needs to judge the numbers.
    """

    tables: tuple[TableRecipe, ...] = ()
    charts: tuple[ChartRecipe, ...] = ()
    reconstructions: PicturesRecipe | None = None
    generations: PicturesRecipe | None = None
    answers: AnswersRecipe | None = None
    minutes: float | None = None
    gib: float | None = None
    notes: tuple[str, ...] = ()

    def drawn_steps(self) -> list[str]:
        """Return the steps whose curves are drawn."""
        return [step for chart in self.charts for step, _ in chart.lines.values()]

    def shown_sources(self) -> list[str]:
        """Return the measurements that are shown."""
        pictures = [part for part in (self.reconstructions, self.generations) if part]
        parts: list[TableRecipe | PicturesRecipe] = [*self.tables, *pictures]
        found = [source for part in parts for source in part.sources.values()]
        found += [part.originals for part in pictures]
        if self.answers:
            found += [self.answers.originals, self.answers.captions, self.answers.questions]
        return [source for source in found if source]


def refuse_unknown(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys that are not read.

    Raises:
        UserError: Names the keys, and those that are known.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is {given!r}; it must be a mapping with {', '.join(sorted(known))}.")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(f"{where} has {', '.join(map(repr, unknown))}; known: {', '.join(sorted(known))}.")


def parse_strictly(cls: type[Spec], where: str, given: Mapping[str, Any]) -> Spec:
    """Build a dataclass from a mapping.

    Raises:
        UserError: A key is unknown or missing.
    """
    known = fields(cls)  # type: ignore[arg-type]
    refuse_unknown(where, given, {each.name for each in known})
    needed = [each.name for each in known if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in needed if name not in given]:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    return cls(**given)


def parse_report(given: Mapping[str, Any], curves: Any) -> ReportRecipe:
    """Read the part `report` of a recipe, and its `curves`: columns of metrics.csv by step, each a chart of its own.

    Raises:
        UserError: A part has another shape, or a line of a chart is not a step and a column.
    """
    refuse_unknown("`report`", given, ReportRecipe.__dataclass_fields__)
    listed = {name: as_list(f"`report.{name}`", given.get(name), "[...]") for name in ("tables", "charts", "notes")}
    charts = [_chart(chart) for chart in listed["charts"]] + _curves(curves)
    parts: dict[str, type[Any]] = {
        "reconstructions": PicturesRecipe,
        "generations": PicturesRecipe,
        "answers": AnswersRecipe,
    }
    built = {name: parse_strictly(cls, f"`report.{name}`", given[name]) for name, cls in parts.items() if name in given}
    tables = tuple(parse_strictly(TableRecipe, "a table of `report`", table) for table in listed["tables"])
    lists = {"tables": tables, "charts": tuple(charts), "notes": tuple(listed["notes"])}
    return ReportRecipe(**{**given, **built, **lists})


def _chart(given: Mapping[str, Any]) -> ChartRecipe:
    chart = parse_strictly(ChartRecipe, "a chart of `report`", given)
    lines = as_mapping(f"`lines` of chart {chart.title!r}", chart.lines, "{loss: [llm, train/loss]}")
    if not all(isinstance(line, list) and len(line) == 2 for line in lines.values()):
        raise UserError(f"chart {chart.title!r}: a line is [step, column of metrics.csv].")
    return chart


def _curves(given: Any) -> list[ChartRecipe]:
    curves = as_mapping("`curves`", given, "{llm: [train/loss]}")
    lists = {step: as_list(f"`curves` of {step}", columns, "[train/loss]") for step, columns in curves.items()}
    pairs = [(step, column) for step, columns in lists.items() for column in columns]
    return [ChartRecipe(f"{step}: {column}", {"": (step, column)}) for step, column in pairs]


def parse_reference(given: Any) -> tuple[Mapping[str, Any], ...]:
    """Read published tables, each with title, columns, rows and perhaps a note.

    Raises:
        UserError: A table lacks one of them, or a row has not as many entries as there are columns.
    """
    tables = as_list("`reference`", given, '[{title: Divot, columns: ["", FVD], rows: [[GMM, 366.6]]}]')
    for table in tables:
        refuse_unknown("a table of `reference`", table, {"title", "columns", "rows", "note"})
        if missing := [name for name in ("title", "columns", "rows") if name not in table]:
            raise UserError(f"a table of `reference` lacks {', '.join(missing)}.")
        where = f"of the table {table['title']!r} of `reference`"
        columns = as_list(f"`columns` {where}", table["columns"], '["", FVD]')
        for row in as_list(f"`rows` {where}", table["rows"], "[[GMM, 366.6]]"):
            if len(as_list(f"a row {where}", row, "[GMM, 366.6]")) != len(columns):
                raise UserError(f"a row {where} has {len(row)} entries for {len(columns)} columns: {row}.")
    return tuple(tables)
