"""Score finished predictions and write the files; rules, judge and metrics are applied nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_lightning.evaluation.benchmark_scores import Values, measure
from divot_lightning.evaluation.benchmarks.table import Benchmark
from divot_lightning.evaluation.chosen_items import ChosenItems
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.headline import headline_first
from divot_lightning.evaluation.judges.judge import Judge
from divot_lightning.evaluation.judges.prompts import OpenAnswer
from divot_lightning.evaluation.kept_clips import gather_clips
from divot_lightning.evaluation.predictions import PredictionStore, Row
from divot_lightning.evaluation.protocol import library_versions
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.evaluation.statistics.comparison import SCORES
from divot_lightning.evaluation.submissions import Submission, write_submission

MEASURED_WITH = {
    "clip_similarity": "clip_model",
    "frechet_video_distance": "video_features",
    "non_finite_features": "video_features",
    "frechet": "toy_features",
}
"""The metric whose description belongs to a score."""
JUDGED = ("judged", "judged_score", "unjudged")
"""Scores that depend on the judge."""


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
        config: Of the evaluation.
        chosen: The items.
        predicted: Protocol of the predictions, with the `model`.
        metrics: The networks that measured the clips, by metric.
        folder: Of the evaluation.
    """

    benchmark: Benchmark
    config: EvaluationConfig
    chosen: ChosenItems
    predicted: Mapping[str, Any]
    metrics: Mapping[str, Any]
    folder: Path

    def finish(self, rows: list[Row], judge: Judge | None) -> EvaluationResult:
        """Compute and write all scores; those that need no judge are written before it is called.

        Args:
            rows: The row of every selected item, in order.
            judge: Judges open answers; None for no judge.
        """
        scores = self._write(rows, None)
        if judge is not None:
            self._judge(judge, rows)
            scores = self._write(rows, judge)
        submission = None
        if self.benchmark.task == "choice":
            submission = write_submission(
                self.config.benchmark, self.folder, self.chosen.items, rows, self.config.unparsed_as
            )
        return EvaluationResult(scores, self.folder, self._remarks(), submission)

    def _write(self, rows: list[Row], judge: Judge | None) -> list[Score]:
        name = self.config.benchmark
        values = measure(self.benchmark, self.chosen.items, rows, self.config)
        for row in rows:
            if "scores" in row:
                row["scores"] = {f"{name}/{score}": value for score, value in row["scores"].items()}
        scores = self._described(headline_first(values), judge)
        PredictionStore(self.folder).merge(rows)
        if self.benchmark.task == "generation":
            numbers = [number for number, _ in self.chosen.numbered]
            gather_clips(self.folder, dict(zip(numbers, rows, strict=True)), self.config.generation.kept_clips)
        save_scores(scores, self.folder / SCORES)
        return scores

    def _described(self, values: Values, judge: Judge | None) -> list[Score]:
        base = {name: value for name, value in self.predicted.items() if name != "model"}
        base |= self.chosen.describe_choice()
        before, now = base.get("versions", {}), library_versions()
        if changed := {name: value for name, value in now.items() if before.get(name) != value}:
            base["scored_with"] = changed
        name, model = self.config.benchmark, dict(self.predicted["model"])
        return [
            Score(f"{name}/{score}", value, count, {**base, **self._rules(score, judge)}, model)
            for score, (value, count) in values.items()
        ]

    def _rules(self, score: str, judge: Judge | None) -> dict[str, Any]:
        """Return the part of the protocol that belongs to this score alone."""
        rules: dict[str, Any] = {}
        if self.benchmark.task == "choice" and score != "unreadable":
            rules |= {"choice_rule": self.config.choice_rule, "unparsed_as": self.config.unparsed_as}
        if score == "mean_of_groups":
            rules["absent_groups"] = self.chosen.absent_groups
        if judge is not None and score.partition("/")[0] in JUDGED:
            rules["judge"] = {**judge.describe(), "unjudged_as": self.config.judge.unjudged_as}
        metric = MEASURED_WITH.get(score, "")
        if metric in self.metrics:
            rules[metric] = self.metrics[metric]
        return rules

    def _judge(self, judge: Judge, rows: Sequence[Row]) -> None:
        pairs = list(zip(self.chosen.items, rows, strict=True))
        answered = [(item, row) for item, row in pairs if "error" not in row]
        answers = [OpenAnswer(item.question, str(item.answer), row["said"]) for item, row in answered]
        prompt = judge.prompt
        for _, row in pairs:  # a video that cannot be read counts as a wrong answer, without a judgement
            row |= {"judged": False, **({"judge_score": 0.0} if prompt.scored else {})}
        for (_, row), (verdict, reply) in zip(answered, judge.judge(answers), strict=True):
            row |= {"judged": verdict and verdict.right, "judge_reply": reply}
            if prompt.scored:
                score = None if verdict is None or verdict.score is None else verdict.score
                row["judge_score"] = float(int(score)) if score is not None and prompt.whole_scores else score

    def _remarks(self) -> tuple[str, ...]:
        chosen, remarks = self.chosen, []
        if chosen.without_video:
            remarks.append(f"{chosen.without_video} of {chosen.total} items have no video and are skipped")
        if chosen.limit is not None and chosen.limit < chosen.total - chosen.without_video:
            remarks.append(f"only the first {len(chosen.numbered)} of {chosen.total} items (limit)")
        if self.benchmark.task == "choice" and (absent := chosen.absent_groups):
            there = len(chosen.groups) - len(absent)
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            remarks.append(f"{there} of {len(chosen.groups)} groups are there; without any item: {shown}")
        return tuple(remarks)
