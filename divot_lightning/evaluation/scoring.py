"""Score finished predictions and write the files; rules, judge and metrics are applied nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_lightning.evaluation.chosen_items import ChosenItems
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.headline import headline_first
from divot_lightning.evaluation.judges.judge import Judge
from divot_lightning.evaluation.judges.verdicts import JUDGED, judge_rows, verdict_scores
from divot_lightning.evaluation.kept_clips import gather_clips
from divot_lightning.evaluation.predictions import PredictionStore
from divot_lightning.evaluation.protocol import COUNTED, library_versions
from divot_lightning.evaluation.scores import SCORES, Score, save_scores
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, Prediction, Submission, Values
from divot_lightning.parts.metrics import BenchmarkMetric


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        scores: The scores, the benchmark's main score first; empty on all processes but the first.
        folder: Of predictions and scores.
        remarks: What a reader of the scores must know, one line each.
        submission: The file for the benchmark's server, if answers are not public.
    """

    scores: list[Score]
    folder: Path
    remarks: tuple[str, ...] = ()
    submission: Submission | None = None


@dataclass(frozen=True)
class Scoring:
    """Everything that scores are computed from besides the predictions.

    Attributes:
        benchmark: The benchmark.
        metrics: Its metrics.
        config: Of the evaluation.
        chosen: The items.
        predicted: Protocol of the predictions, with the `model`.
        folder: Of the evaluation.
    """

    benchmark: Benchmark
    metrics: Sequence[BenchmarkMetric]
    config: EvaluationConfig
    chosen: ChosenItems
    predicted: Mapping[str, Any]
    folder: Path

    def finish(self, rows: list[Row], judge: Judge | None) -> EvaluationResult:
        """Compute and write all scores; those that need no judge are written before it is called.

        Args:
            rows: The row of every selected item, in order.
            judge: Judges open answers; None for no judge.
        """
        scores = self._write(rows, None)
        if judge is not None:
            judge_rows(judge, self.chosen.items, rows)
            scores = self._write(rows, judge)
        submission = self.benchmark.write_submission(self.folder, self.chosen.items, rows)
        return EvaluationResult(scores, self.folder, self._remarks(), submission)

    def _write(self, rows: list[Row], judge: Judge | None) -> list[Score]:
        values, protocols = self._measure(rows)
        values |= verdict_scores(rows, self.config.judge.unjudged_as)
        values["unreadable"] = (sum("error" in row for row in rows) / len(rows), len(rows))
        for row in rows:
            if "scores" in row:
                row["scores"] = {f"{self.chosen.name}/{score}": value for score, value in row["scores"].items()}
        scores = self._described(headline_first(values, self.benchmark.main_scores), protocols, judge)
        PredictionStore(self.folder).merge(rows)
        if self.benchmark.predicts != "answers":
            numbers = [number for number, _ in self.chosen.numbered]
            gather_clips(self.folder, dict(zip(numbers, rows, strict=True)), self.config.generation.kept_clips)
        save_scores(scores, self.folder / SCORES)
        return scores

    def _measure(self, rows: list[Row]) -> tuple[Values, dict[str, dict[str, Any]]]:
        """Return the scores of the benchmark's metrics, and what belongs to the protocol of each score alone.

        Each item's own values are put into its row as `scores`. Clips were measured when they were made; those of
        videos that cannot be read are left out. An answer about such a video is empty.
        """
        answers = self.benchmark.predicts == "answers"
        pairs = [(i, row) for i, row in zip(self.chosen.items, rows, strict=True) if answers or "error" not in row]
        items = [item for item, _ in pairs]
        measured = [{**row, **(self._answer(item, row) if answers else {})} for item, row in pairs]
        values = self.benchmark.score(self.metrics, measured, items)
        protocols: dict[str, dict[str, Any]] = {}
        for _, row in pairs:
            row["scores"] = {}
        for metric in self.metrics:
            if metric.update_called:
                own_counts = metric.counts()
                protocols |= {name: metric.describe() | _counted(name in own_counts) for name in metric.compute()}
            for (_, row), own in zip(pairs, metric.item_values(measured, items), strict=True):
                row["scores"] |= own
        return values, protocols

    def _answer(self, item: BenchmarkItem, row: Row) -> dict[str, Any]:
        """Read and measure an answer; what was read is put into the row as `chosen` unless it is the text."""
        answer = row.get("prediction", "")
        parsed = None if "error" in row else self.benchmark.parse(answer, item)
        if type(self.benchmark).parse is not Benchmark.parse:
            row["chosen"] = parsed
        prediction = Prediction(answer=answer, parsed=parsed)
        return {name: value for metric in self.metrics for name, value in metric.measure(prediction, item).items()}

    def _described(self, values: Values, protocols: Mapping[str, dict[str, Any]], judge: Judge | None) -> list[Score]:
        base = {name: value for name, value in self.predicted.items() if name != "model"}
        base |= self.chosen.describe_choice()
        before, now = base.get("versions", {}), library_versions()
        if changed := {name: value for name, value in now.items() if before.get(name) != value}:
            base["scored_with"] = changed
        name, model = self.chosen.name, dict(self.predicted["model"])
        return [
            Score(f"{name}/{score}", value, count, {**base, **self._rules(score, protocols, judge)}, model)
            for score, (value, count) in values.items()
        ]

    def _rules(self, score: str, protocols: Mapping[str, dict[str, Any]], judge: Judge | None) -> dict[str, Any]:
        """Return the part of the protocol that belongs to this score alone."""
        rules = dict(protocols.get(score, {}))
        if score != "unreadable":
            rules |= self.benchmark.describe()
        if score == "mean_of_groups":
            rules["absent_groups"] = self.chosen.absent_groups
        if judge is not None and score.partition("/")[0] in JUDGED:
            rules["judge"] = {**judge.describe(), "unjudged_as": self.config.judge.unjudged_as}
        return rules

    def _remarks(self) -> tuple[str, ...]:
        chosen, remarks = self.chosen, []
        if chosen.without_video:
            remarks.append(f"{chosen.without_video} of {chosen.total} items have no video and are skipped")
        if chosen.limit is not None and chosen.limit < chosen.total - chosen.without_video:
            remarks.append(f"only the first {len(chosen.numbered)} of {chosen.total} items (limit)")
        if "mean_of_groups" in self.benchmark.main_scores and (absent := chosen.absent_groups):
            there = len(chosen.groups) - len(absent)
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            remarks.append(f"{there} of {len(chosen.groups)} groups are there; without any item: {shown}")
        return tuple(remarks)


def _counted(partly: bool) -> dict[str, str]:
    """Return what the protocol of a score says that a metric measures on a part of the items only."""
    return {COUNTED: "items on which it is defined"} if partly else {}
