"""Score predictions by a metric, as an evaluation does."""

from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction


def scores_of(metric, predictions, items=None):
    """Return the scores of all that the metric was given so far, as numbers."""
    items = items or [BenchmarkItem("", None, "")] * len(predictions)
    measured = [metric.measure(prediction, item) for prediction, item in zip(predictions, items, strict=True)]
    metric.update(measured, items)
    return {name: value.item() for name, value in metric.compute().items()}


def clip_pairs(clips, originals):
    """Return a prediction for each clip and its original."""
    return [Prediction(clip=clip, original=original) for clip, original in zip(clips, originals, strict=True)]
