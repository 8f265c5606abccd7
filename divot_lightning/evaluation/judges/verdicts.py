"""Put the verdicts of a judge into the rows of answers, and compute their scores. No torch in here."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from divot_lightning.evaluation.judges.judge import Judge
from divot_lightning.evaluation.judges.prompts import OpenAnswer
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import BenchmarkItem, Values

JUDGED = ("judged", "judged_score", "unjudged")
"""Scores that depend on the judge."""


def judge_rows(judge: Judge, items: Sequence[BenchmarkItem], rows: Sequence[Row]) -> None:
    """Judge all answers; a video that cannot be read counts as a wrong answer, without a judgement."""
    answered = [(item, row) for item, row in zip(items, rows, strict=True) if "error" not in row]
    answers = [OpenAnswer(item.question, str(item.answer), row["prediction"]) for item, row in answered]
    prompt = judge.prompt
    for row in rows:
        row |= {"judged": False, **({"judge_score": 0.0} if prompt.scored else {})}
    for (_, row), (verdict, reply) in zip(answered, judge.judge(answers), strict=True):
        row |= {"judged": verdict and verdict.right, "judge_reply": reply}
        if prompt.scored:
            score = None if verdict is None or verdict.score is None else verdict.score
            row["judge_score"] = float(int(score)) if score is not None and prompt.whole_scores else score


def verdict_scores(rows: Sequence[Row], unjudged_as: Literal["wrong", "left_out"]) -> Values:
    """Compute the scores of a judge's verdicts, also into `scores` of each row; none if nothing was judged."""
    values: Values = {}
    for score, entry in (("judged", "judged"), ("judged_score", "judge_score")):
        judged = [row for row in rows if entry in row]
        counted = [row for row in judged if row[entry] is not None or unjudged_as == "wrong"]
        for row in counted:
            row["scores"][score] = float(row[entry] or 0.0)
        if judged:
            values[score] = _mean([row["scores"][score] for row in counted])
        for group in dict.fromkeys(row["group"] for row in judged if "group" in row):
            of_group = [row for row in counted if row.get("group") == group]
            for row in of_group:
                row["scores"][f"{score}/{group}"] = row["scores"][score]
            values[f"{score}/{group}"] = _mean([row["scores"][score] for row in of_group])
    verdicts: list[Any] = [row["judged"] for row in rows if "judged" in row]
    return values | ({"unjudged": (verdicts.count(None) / len(verdicts), len(verdicts))} if verdicts else {})


def _mean(values: Sequence[float]) -> tuple[float, int]:
    """Return the mean of values, NaN of none, and how many there are."""
    return fmean(values) if values else math.nan, len(values)
