"""Compute scores from predictions; each item's value is put into its row, so that two evaluations can be paired."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torchmetrics import Metric

from divot_datamodules.toy.world import Reading
from divot_lightning.evaluation.answers.accuracy import (
    ChoiceAccuracy,
    OpenAnswerAccuracy,
    compare_answers,
    parse_choice,
)
from divot_lightning.evaluation.answers.text_match import ToyCaptionAccuracy
from divot_lightning.evaluation.benchmarks.items import BenchmarkItem
from divot_lightning.evaluation.benchmarks.table import Benchmark
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.metrics.caption_metrics import (
    BLEU_ORDERS,
    CaptionBLEU,
    CaptionROUGE,
    cider_of_captions,
    rouge_of_caption,
)
from divot_lightning.evaluation.metrics.frechet import FrechetDistance
from divot_lightning.evaluation.metrics.toy_oracle import attributes_right, count_correct, start_spread
from divot_lightning.evaluation.predictions import Row

AnyMetric = TypeVar("AnyMetric", bound=Metric)

Values = dict[str, tuple[float, int]]
"""Value and number of items, by score."""

Pairs = list[tuple[BenchmarkItem, Row]]


def measure(
    benchmark: Benchmark, items: Sequence[BenchmarkItem], rows: Sequence[Row], config: EvaluationConfig
) -> Values:
    """Compute the scores of finished predictions.

    Args:
        benchmark: The benchmark.
        items: Its items.
        rows: The row of each item, in the same order; its values are added as `scores`, without the benchmark's name.
        config: Of the evaluation.

    Returns:
        Values by name, without the benchmark's name. Items whose answers are not public have none.
    """
    pairs = list(zip(items, rows, strict=True))
    failed = sum("error" in row for row in rows)
    values = _MEASURES[benchmark.task](benchmark, pairs, config)
    return {**values, "unreadable": (failed / len(pairs), len(pairs))}


def _alone(metric: AnyMetric) -> AnyMetric:
    """Return a metric that does not synchronise: this process has all items, and the others have left."""
    metric.distributed_available_fn = lambda: False
    return metric


def _measure_choices(benchmark: Benchmark, pairs: Pairs, config: EvaluationConfig) -> Values:
    for item, row in pairs:
        prediction = row.get("said")
        row["chosen"] = None if prediction is None else parse_choice(prediction, item.options, config.choice_rule)
    known = [(item, row) for item, row in pairs if item.choice is not None]
    if not known:
        return {"unparsed": _unparsed(pairs)}
    groups = list(dict.fromkeys(item.group for item, _ in known))
    metric = _alone(ChoiceAccuracy(groups if len(groups) > 1 else ()))
    counts = {group: sum(item.group == group for item, _ in known) for group in metric.groups}
    for item, row in known:
        assert item.choice is not None
        counted = config.unparsed_as if row["chosen"] is None and "error" not in row else row["chosen"]
        right = float(counted == item.choice)
        row["scores"] = {"all": right}
        if metric.groups:
            # Weighted so that the mean over all items is the mean of the groups' means: items can then be paired.
            weight = len(known) / (len(counts) * counts[item.group])
            row["scores"] |= {item.group: right, "mean_of_groups": right * weight}
        metric.update([counted], [item.choice], [item.group] if metric.groups else ())
    values = {name: (value.item(), counts.get(name, len(known))) for name, value in metric.compute().items()}
    return {**values, "unparsed": _unparsed(known)}


def _unparsed(pairs: Pairs) -> tuple[float, int]:
    """Return the fraction of items whose answer chose no option; items without a readable video have no answer."""
    return sum(row["chosen"] is None and "error" not in row for _, row in pairs) / len(pairs), len(pairs)


def _measure_answers(benchmark: Benchmark, pairs: Pairs, config: EvaluationConfig) -> Values:
    metric, groups = _alone(OpenAnswerAccuracy()), dict.fromkeys(item.group for item, _ in pairs if item.group)
    for item, row in pairs:
        prediction, target = row.get("said", ""), str(item.answer)
        metric.update([prediction], [target])
        exact, same = map(float, compare_answers(prediction, target))
        row["scores"] = {"exact": exact, "normalised": same}
        if item.group:
            row["scores"][f"normalised/{item.group}"] = same
    values = {name: (value.item(), len(pairs)) for name, value in metric.compute().items() if name != "judged"}
    for group in groups:
        of_group = [row["scores"]["normalised"] for item, row in pairs if item.group == group]
        values[f"normalised/{group}"] = _mean(of_group)
    return values | _measure_verdicts([row for _, row in pairs], config.judge.unjudged_as)


def _measure_verdicts(rows: Sequence[Row], unjudged_as: Literal["wrong", "left_out"]) -> Values:
    """Compute the scores of a judge's verdicts; none if nothing was judged."""
    values: Values = {}
    for score, entry in (("judged", "judged"), ("judged_score", "judge_score")):
        judged = [row for row in rows if entry in row]
        for row in judged:
            if row[entry] is not None or unjudged_as == "wrong":
                row["scores"][score] = float(row[entry] or 0.0)
        counted = [row for row in judged if score in row["scores"]]
        if judged:
            values[score] = _mean([row["scores"][score] for row in counted])
        for group in dict.fromkeys(row["group"] for row in judged if "group" in row):
            of_group = [row for row in counted if row["group"] == group]
            for row in of_group:
                row["scores"][f"{score}/{group}"] = row["scores"][score]
            values[f"{score}/{group}"] = _mean([row["scores"][score] for row in of_group])
    verdicts = [row["judged"] for row in rows if "judged" in row]
    return values | ({"unjudged": (verdicts.count(None) / len(verdicts), len(verdicts))} if verdicts else {})


def _mean(values: Sequence[float]) -> tuple[float, int]:
    """Return the mean of values, NaN of none, and how many there are."""
    return math.fsum(values) / len(values) if values else math.nan, len(values)


def _measure_captions(benchmark: Benchmark, pairs: Pairs, config: EvaluationConfig) -> Values:
    predictions = [row.get("said", "") for _, row in pairs]
    references = [item.references for item, _ in pairs]
    values: Values = {}
    for order in BLEU_ORDERS:
        bleu = _alone(CaptionBLEU(order))
        bleu.update(predictions, references)
        values[f"bleu_{order}"] = (bleu.compute().item(), len(pairs))
    rouge = _alone(CaptionROUGE())
    rouge.update(predictions, references)
    values["rouge_l"] = (rouge.compute().item(), len(pairs))
    ciders = cider_of_captions(predictions, references)
    values["cider_d"] = (math.fsum(ciders) / len(ciders), len(pairs))
    for text, targets, cider, (_, row) in zip(predictions, references, ciders, pairs, strict=True):
        row["scores"] = {"rouge_l": rouge_of_caption(text, targets), "cider_d": cider}
    if benchmark.toy:
        toy = _alone(ToyCaptionAccuracy())
        toy.update(predictions, [targets[0] for targets in references])
        values |= {name: (value.item(), len(pairs)) for name, value in toy.compute().items()}
    return values


def _measure_clips(benchmark: Benchmark, pairs: Pairs, config: EvaluationConfig) -> Values:
    measured = [(item, row) for item, row in pairs if "error" not in row]
    rows, values = [row for _, row in measured], Values()
    for row in rows:
        row["scores"] = {}
    if rows and config.generation.clip_model:
        for row in rows:
            row["scores"]["clip_similarity"] = row["clip_similarity"]
        similarities = [row["clip_similarity"] for row in rows]
        values["clip_similarity"] = (math.fsum(similarities) / len(rows), len(rows))
    if rows and config.generation.video_features:
        non_finite = sum(not all(map(math.isfinite, row["features"] + row["real_features"])) for row in rows)
        # Leaving out clips with non-finite features would make a broken model look better than it is.
        distance = math.nan if non_finite else _frechet(rows, "features", scaled=False)
        values["frechet_video_distance"] = (distance, len(rows))
        values["non_finite_features"] = (non_finite / len(rows), len(rows))
    if benchmark.toy:
        values |= _measure_toy_clips(measured)
    return values


def _measure_toy_clips(pairs: Pairs) -> Values:
    readings = [_reading(row["reading"]) for _, row in pairs]
    expected = [item.facts["attributes"] for item, _ in pairs]
    counts = count_correct(readings, expected)
    total = counts.pop("count")
    values: Values = {name: (count / total if total else math.nan, total) for name, count in counts.items()}
    for (_, row), reading, target in zip(pairs, readings, expected, strict=True):
        right = attributes_right(reading, target)
        row["scores"] |= {name: float(value) for name, value in right.items()} | {"all": float(all(right.values()))}
    captions = [item.facts["prompt"] for item, _ in pairs]
    spread, counted = start_spread(readings, captions)
    truths = [Reading(True, start=tuple(item.facts["start"])) for item, _ in pairs]
    real_spread, _ = start_spread(truths, captions)
    values["spread"] = (spread / real_spread if real_spread else math.nan, counted)
    values["frechet"] = (_frechet([row for _, row in pairs], "toy_features", scaled=True), total)
    return values


def _reading(stored: dict[str, Any]) -> Reading:
    start = stored["start"]
    return Reading(**{**stored, "start": None if start is None else tuple(start)})


def _frechet(rows: Sequence[Row], name: str, *, scaled: bool) -> float:
    """Return the distance between the generated and the real clips, NaN for fewer than two."""
    if len(rows) < 2:
        return math.nan
    generated, real = (torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in (name, f"real_{name}"))
    metric = _alone(FrechetDistance(None, generated.shape[1], scaled=scaled))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric.compute().item()


_MEASURES: dict[str, Callable[[Benchmark, Pairs, EvaluationConfig], Values]] = {
    "choice": _measure_choices,
    "open": _measure_answers,
    "caption": _measure_captions,
    "generation": _measure_clips,
}
