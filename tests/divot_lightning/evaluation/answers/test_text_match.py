"""Texts match exactly or not at all."""

import math

import pytest

from divot_datamodules.toy.world import Scene, caption
from divot_lightning.evaluation.answers.text_match import ExactMatch, ToyCaptionAccuracy, normalise_text
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from tests.divot_lightning.evaluation.measuring import scores_of


@pytest.mark.parametrize(("predicted", "right"), [("Upper  left", 1.0), ("upper", 0.0), ("", 0.0)])
def test_only_words_count(predicted, right):
    metric = ExactMatch()
    metric.update([predicted], ["upper left"])
    assert metric.compute()["all"] == right


def test_groups_are_counted_apart():
    metric = ExactMatch(["colour", "shape", "speed"])
    metric.update(["red", "blue", "circle"], ["red", "red", "circle"], ["colour", "colour", "shape"])
    scores = metric.compute()
    assert (scores["colour"], scores["shape"]) == (0.5, 1.0)
    assert scores["all"].item() == pytest.approx(2 / 3)
    assert math.isnan(scores["speed"])


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="longer"):
        ExactMatch().update(["a"], ["a", "b"])


def test_caption_names_attributes_exactly_or_is_invalid():
    truth = caption(Scene("red", "circle", "upper left", "slowly", 0, 0))
    said = [truth, caption(Scene("blue", "circle", "up", "slowly", 0, 0)), "a circle a circle", truth.upper()]
    items = [BenchmarkItem("", None, "", references=(truth,))] * 4
    assert scores_of(ToyCaptionAccuracy(), [Prediction(text) for text in said], items) == {
        "colour": 0.5, "shape": 0.75, "direction": 0.5, "speed": 0.75, "exact": 0.5, "invalid": 0.25
    }  # fmt: skip


def test_normalising_keeps_the_words():
    assert normalise_text("\tA  red\nCircle ") == "a red circle"
