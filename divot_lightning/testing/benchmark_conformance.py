"""Tests that every benchmark has to pass; subclass `BenchmarkConformance` for your own."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, Prediction, Values
from divot_lightning.parts.part import spec_of

ANSWERS = ("", "yes", "(A)", "The answer is B.", "a red circle moves up", "\u2028 \u0000 <think>")
"""Answers that any parser must survive."""


class BenchmarkConformance:
    """Subclass it in a test file, named `Test...`, and define `make_benchmark` and `write_data`."""

    def make_benchmark(self) -> Benchmark:
        """Build the benchmark."""
        raise NotImplementedError("define make_benchmark")

    def write_data(self, folder: Path) -> str | Path:
        """Write a small copy of the benchmark's files, with at least two items, and return what `--data` would name."""
        raise NotImplementedError("define write_data")

    def right_answer(self, item: BenchmarkItem) -> str | None:
        """Return an answer that must count as right; None for benchmarks of clips, and where there is no such."""
        return None

    def test_items_are_stable_and_have_ids_of_their_own(self, tmp_path: Path) -> None:
        """Predictions are stored by id, and a stopped evaluation reads the items again."""
        first, second = (self._items(tmp_path / "data", write) for write in (True, False))
        assert len(first) >= 2, "write_data must write at least two items"
        assert first == second, "two readings differ"
        assert len({item.id for item in first}) == len(first), "two items have one id"
        assert all(item.media_name for item in first), "every item names its video"

    def test_videos_can_be_found(self, tmp_path: Path) -> None:
        """Media are bytes, or files that exist."""
        for item in self._items(tmp_path):
            content = item.content
            assert content if isinstance(content, bytes) else content.exists(), f"{item.media_name} is not there"

    def test_absent_data_are_a_user_error(self, tmp_path: Path) -> None:
        """The message can say what to do."""
        benchmark = self.make_benchmark()
        with pytest.raises(UserError):
            benchmark.items(tmp_path / "nothing here", benchmark.splits[0])

    def test_prompts_are_filled(self, tmp_path: Path) -> None:
        """A prompt holds the question and all options; one for a clip is a text."""
        benchmark = self.make_benchmark()
        for item in self._items(tmp_path):
            prompt = benchmark.prompt(item)
            if benchmark.predicts in ("clips", "stories"):
                assert prompt, f"{item.id}: there is nothing to generate from"
            if prompt is not None and benchmark.predicts == "answers":
                missing = [text for text in (item.question, *item.options) if text not in prompt]
                assert not missing, f"{item.id}: the prompt lacks {missing}"

    def test_any_answer_can_be_read(self, tmp_path: Path) -> None:
        """`parse` returns a JSON value for whatever a model writes."""
        benchmark = self.make_benchmark()
        for item in self._items(tmp_path) if benchmark.predicts == "answers" else ():
            for answer in ANSWERS:
                json.dumps(benchmark.parse(answer, item))

    def test_metrics_fit_what_is_predicted(self, tmp_path: Path) -> None:
        """Answers are measured by metrics of answers, clips by metrics of clips, features by those of features."""
        benchmark = self.make_benchmark()
        metrics = benchmark.make_metrics(self._items(tmp_path))
        assert metrics, "nothing is measured"
        expected = benchmark.predicts if benchmark.predicts in ("answers", "features") else "clips"
        assert {metric.inputs for metric in metrics} == {expected}

    def test_empty_predictions_have_scores(self, tmp_path: Path) -> None:
        """An evaluation in which no video could be read has scores too, as numbers with a number of items."""
        benchmark, items = self.make_benchmark(), self._items(tmp_path)
        values = self._score(benchmark, items, [Prediction("", None)] * len(items))
        assert values, "there is no score"
        for name, (value, count) in values.items():
            assert isinstance(value, float), f"{name} is a {type(value).__name__}"
            assert 0 <= count <= len(items), f"{name} was measured on {count} of {len(items)} items"

    def test_right_answers_have_the_best_score(self, tmp_path: Path) -> None:
        """And empty ones do not."""
        benchmark, items = self.make_benchmark(), self._items(tmp_path)
        answers = [self.right_answer(item) for item in items]
        if any(answer is None for answer in answers):
            return
        right = [
            Prediction(answer, benchmark.parse(answer, item))
            for answer, item in zip(answers, items, strict=True)
            if answer
        ]
        best = self._score(benchmark, items, right)
        name = next((name for name in benchmark.main_scores if name in best), next(iter(best)))
        empty = self._score(benchmark, items, [Prediction("", benchmark.parse("", item)) for item in items])
        assert best[name][0] > empty[name][0], f"{name}: right answers {best[name]}, empty ones {empty[name]}"

    def test_settings_rebuild_the_benchmark(self) -> None:
        """`init_args` survives JSON; the rules are JSON."""
        benchmark = self.make_benchmark()
        twin = type(benchmark)(**json.loads(json.dumps(spec_of(benchmark).init_args)))
        assert twin.init_args == benchmark.init_args
        assert json.loads(json.dumps(twin.describe())) == benchmark.describe()
        assert benchmark.splits, "there is no split"

    def _items(self, folder: Path, write: bool = True) -> tuple[BenchmarkItem, ...]:
        benchmark = self.make_benchmark()
        if write:
            folder.mkdir(exist_ok=True)
            self._data = self.write_data(folder)
        return benchmark.items(self._data, benchmark.splits[0]).items

    def _score(self, benchmark: Benchmark, items: Sequence[BenchmarkItem], predictions: Sequence[Prediction]) -> Values:
        metrics = benchmark.make_metrics(items)
        if benchmark.predicts != "answers":  # clips of videos that cannot be read are left out
            return benchmark.score(metrics, [], [])
        measured = [
            {name: value for metric in metrics for name, value in metric.measure(prediction, item).items()}
            for prediction, item in zip(predictions, items, strict=True)
        ]
        return benchmark.score(metrics, measured, items)
