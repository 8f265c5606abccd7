"""Tests that every metric has to pass; subclass `MetricConformance` for your own."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.testing import assert_close

from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import BenchmarkMetric
from divot_lightning.parts.part import spec_of
from divot_lightning.testing.run_distributed import run_distributed

Sample = tuple[Prediction, BenchmarkItem]


class MetricConformance:
    """Subclass it in a test file, named `Test...`, and define `make_metric` and `make_samples`.

    Attributes:
        tolerance: How far scores may differ with the division of the items, relative.
    """

    tolerance: float = 1e-9

    def make_metric(self) -> BenchmarkMetric:
        """Build the metric."""
        raise NotImplementedError("define make_metric")

    def make_samples(self) -> Sequence[Sample]:
        """Return at least four predictions of different quality with their items, as the benchmark reads them."""
        raise NotImplementedError("define make_samples")

    def make_perfect(self) -> Sequence[Sample]:
        """Return predictions that must have the best score; override it where there are such."""
        return ()

    def test_measurements_are_json(self) -> None:
        """They are stored with the predictions, and give the same scores when they are read again."""
        metric, samples = self.make_metric(), self.make_samples()
        stored = [json.loads(json.dumps(metric.measure(*sample))) for sample in samples]
        again = self.make_metric()
        again.update(stored, [item for _, item in samples])
        assert_close(again.compute(), _scores(metric, samples), rtol=0, atol=0, equal_nan=True)

    def test_scores_are_named_scalars(self) -> None:
        """Numbers of items are known."""
        metric, samples = self.make_metric(), self.make_samples()
        scores = _scores(metric, samples)
        assert scores, "no score is computed"
        assert all(value.ndim == 0 for value in scores.values()), "every score is a scalar"
        assert set(metric.counts()) <= set(scores), "counts() names scores that do not exist"
        assert all(0 <= count <= len(samples) for count in metric.counts().values()), metric.counts()

    def test_no_item_is_no_error(self) -> None:
        """Without items a score is not a number."""
        metric = self.make_metric()
        metric.update([], [])
        values = {name: value.item() for name, value in metric.compute().items()}
        assert all(math.isnan(value) or value == 0 for value in values.values()), f"scores of no item: {values}"

    def test_parts_and_order_do_not_matter(self) -> None:
        """Items in two parts, in reverse, have the scores of all at once."""
        whole, samples = _scores(self.make_metric(), self.make_samples()), list(self.make_samples())[::-1]
        parts = self.make_metric()
        _add(parts, samples[:1])
        _add(parts, samples[1:])
        assert_close(parts.compute(), whole, rtol=self.tolerance, atol=self.tolerance, equal_nan=True)

    def test_reset_forgets_all_items(self) -> None:
        """Scores are computed again by every start."""
        metric, samples = self.make_metric(), self.make_samples()
        first = _scores(metric, samples)
        metric.reset()
        assert_close(_scores(metric, samples), first, rtol=0, atol=0, equal_nan=True)

    def test_processes_are_merged(self) -> None:
        """Three processes, one of them without an item, have the scores of one."""
        whole = _scores(self.make_metric(), self.make_samples())
        for values in run_distributed(_scores_of_rank, 3, self.make_metric, self.make_samples):
            assert_close(values, whole, rtol=self.tolerance, atol=self.tolerance, equal_nan=True)

    def test_values_of_items_have_the_score_as_their_mean(self) -> None:
        """So two evaluations can be paired by item."""
        metric, samples = self.make_metric(), self.make_samples()
        scores, items = _scores(metric, samples), [item for _, item in samples]
        rows = metric.item_values([metric.measure(*sample) for sample in samples], items)
        assert len(rows) == len(items), f"{len(rows)} rows of values for {len(items)} items"
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            assert_close(math.fsum(values) / len(values), scores[name].item(), rtol=1e-6, atol=1e-9, equal_nan=True)

    def test_perfect_predictions_have_the_best_score(self) -> None:
        """`best` and `higher_is_better` say which way is better, for the first score."""
        metric = self.make_metric()
        assert isinstance(metric.higher_is_better, bool), "say whether higher_is_better"
        if not (perfect := self.make_perfect()):
            return
        name, value = next(iter(_scores(metric, perfect).items()))
        assert_close(value.item(), metric.best, rtol=1e-6, atol=1e-6)
        other = _scores(self.make_metric(), self.make_samples())[name].item()
        assert other <= value + 1e-6 if metric.higher_is_better else other >= value - 1e-6, f"{name}: {other}, {value}"

    def test_settings_rebuild_the_metric(self) -> None:
        """`init_args` survives JSON, and the protocol's part is JSON."""
        metric = self.make_metric()
        twin = type(metric)(**json.loads(json.dumps(spec_of(metric).init_args)))
        assert twin.init_args == metric.init_args
        assert json.loads(json.dumps(twin.describe())) == metric.describe()


def _add(metric: BenchmarkMetric, samples: Sequence[Sample]) -> None:
    metric.update([metric.measure(*sample) for sample in samples], [item for _, item in samples])


def _scores(metric: BenchmarkMetric, samples: Sequence[Sample]) -> dict[str, Any]:
    _add(metric, samples)
    return metric.compute()


def _scores_of_rank(
    rank: int, make_metric: Callable[[], BenchmarkMetric], make_samples: Callable[[], Sequence[Sample]]
) -> dict[str, Any]:
    """Compute scores of samples of which rank 0 has one, rank 1 all others and rank 2 none."""
    samples = list(make_samples())
    return _scores(make_metric(), [samples[:1], samples[1:], []][rank])
