"""Write results as CSV, one row per trial and score, and tables as Markdown and LaTeX. No torch in here."""

import csv
import io
import json
import re
from collections.abc import Sequence
from itertools import zip_longest

from divot_lightning.experiments.plan.experiment import Experiment
from divot_lightning.experiments.report.content import Cell, Table
from divot_lightning.experiments.results.trials import TrialResult
from divot_lightning.io.files import text_sha256

CSV_SCORE = ("seed", "measurement", "score", "value", "count", "protocol_sha256", "failure")
CSV_COSTS = ("seconds", "peak_mib", "peak_gpu_mib", "parameters")

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", **{mark: f"\\{mark}" for mark in "&%$#_{}"}}


def as_csv(recipe: Experiment, results: Sequence[TrialResult]) -> str:
    """Return one row per trial and score, with a column per axis, the hash of the protocol and the cost.

    A trial without scores has one row with the reason. `pandas.read_csv(path).groupby([*axes, "score"]).value.mean()`
    gives the means over seeds.
    """
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["trial", "group", *recipe.vary, *CSV_SCORE, *CSV_COSTS])
    for result in results:
        trial, cost = result.trial, [getattr(result, name) for name in CSV_COSTS]
        first = [trial.name, trial.group, *trial.variants, trial.seed]
        if not result.scores:
            writer.writerow([*first, "", "", "", "", "", result.failure or "not done", *cost])
        for key, score in result.scores.items():
            protocol = text_sha256(json.dumps(score.protocol, sort_keys=True))[:16]
            measurement, _, name = key.rpartition(":")
            writer.writerow([*first, measurement, name, score.value, score.count, protocol, "", *cost])
    return stream.getvalue()


def as_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown; the further lines of a cell follow in brackets."""
    return "\n".join(_markdown(table) for table in tables)


def _text(cell: Cell | str) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    return cell.text + (f" ({'; '.join(cell.detail.splitlines())})" if cell.detail else "")


def _markdown(table: Table) -> str:
    rest = "|---" if table.prose else "|---:"
    head = ["| " + " | ".join(table.columns) + " |", "|---" + rest * (len(table.columns) - 1) + "|"]
    rows = ["| " + " | ".join(_text(cell).replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([f"### {table.title}", "", *head, *rows, "", table.note, ""])


def as_latex(tables: Sequence[Table]) -> str:
    """Return tables as LaTeX, for the package booktabs; the further lines of a cell are rows in small print."""
    return "\n".join(_latex(table) for table in tables if not table.prose)


def _latex(table: Table) -> str:
    head = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    rows = [line for row in table.rows for line in _latex_lines(row)]
    body = [*_latex_lines(table.columns), r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    note = [rf"\par\smallskip{{\footnotesize {escape_latex(table.note)}\par}}"] if table.note else []
    return "\n".join([*head, *body, *note, rf"\caption{{{escape_latex(table.title)}}}", r"\end{table}", ""])


def _latex_lines(row: Sequence[Cell | str]) -> list[str]:
    """Return a line of the cells' texts, then one for each of their further lines."""
    cells = [Cell(cell) if isinstance(cell, str) else cell for cell in row]
    small = zip_longest(*(cell.detail.splitlines() for cell in cells), fillvalue="")
    details = [[rf"\scriptsize {escape_latex(text)}" if text else "" for text in line] for line in small]
    return [" & ".join(line) + r" \\" for line in ([escape_latex(cell.text) for cell in cells], *details)]


def escape_latex(text: str) -> str:
    r"""Return a text whose characters LaTeX prints as they are.

    >>> print(escape_latex("generation/all_of (up) 50%"))
    generation/all\_of (up) 50\%
    """
    return re.sub(r"[\\~^<>&%$#_{}]", lambda found: _LATEX[found[0]], text)
