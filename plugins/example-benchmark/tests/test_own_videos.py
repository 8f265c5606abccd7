"""Benchmark and metric keep their contracts, and `divot evaluate` finds them by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from divot_benchmark_own_videos import AcceptedAnswers, OwnVideos

from divot_datamodules.decoding.video_writing import encode_video
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, Prediction
from divot_lightning.parts.metrics import BenchmarkMetric
from divot_lightning.testing.benchmark_conformance import BenchmarkConformance
from divot_lightning.testing.metric_conformance import MetricConformance, Sample
from tests.divot_lightning.evaluation.conftest import tiny_run  # noqa: F401


def write_folder(folder: Path) -> Path:
    """Write two questions about one video."""
    (folder / "a.mp4").write_bytes(encode_video(np.full((16, 3, 32, 32), 90, dtype=np.uint8), 8))
    lines = [
        {"video": "a.mp4", "question": "what moves?", "answers": ["a dog", "the puppy"]},
        {"video": "a.mp4", "question": "which colour?", "answers": ["red"]},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class TestOwnVideos(BenchmarkConformance):
    """The contract of a benchmark."""

    def make_benchmark(self) -> Benchmark:
        """Build the benchmark."""
        return OwnVideos()

    def write_data(self, folder: Path) -> Path:
        """Write a small folder."""
        return write_folder(folder)

    def right_answer(self, item: BenchmarkItem) -> str:
        """Return an accepted answer."""
        return item.references[-1]


class TestAcceptedAnswers(MetricConformance):
    """The contract of a metric."""

    def make_metric(self) -> BenchmarkMetric:
        """Build the metric."""
        return AcceptedAnswers()

    def make_samples(self) -> list[Sample]:
        """Return four answers, of which two are accepted."""
        item = BenchmarkItem("1", None, "v", references=("a dog", "the puppy"))
        return [(Prediction(answer), item) for answer in ("A dog.", "the puppy", "a cat", "")]

    def make_perfect(self) -> list[Sample]:
        """Return accepted answers."""
        return self.make_samples()[:2]


@pytest.mark.usefixtures("tiny_run")
def test_divot_evaluate_finds_the_benchmark_and_its_metric_by_name(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores carry the benchmark's name; every item has its own value."""
    run = request.getfixturevalue("tiny_run")
    (tmp_path / "data").mkdir()
    words = ["--benchmark", "own-videos", "--data", str(write_folder(tmp_path / "data"))]
    assert main(["evaluate", str(run), *words, "--output", str(tmp_path / "out"), "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("own-videos/accepted\t0.0000\t2\tunreadable 0.0%\n")
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["scores"]["own-videos/accepted"] for row in rows] == [0.0, 0.0]


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    """The message has the number of the line."""
    (tmp_path / "questions.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(UserError, match=r"line 1 of .*KeyError 'question'"):
        OwnVideos().items(tmp_path, "test")
