"""Texts match exactly or not at all."""

from divot_datamodules.toy.world import Scene, caption
from divot_lightning.evaluation.answers.text_match import ToyCaptionAccuracy, normalise_text
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from tests.divot_lightning.evaluation.measuring import scores_of


def test_caption_names_attributes_exactly_or_is_invalid():
    truth = caption(Scene("red", "circle", "upper left", "slowly", 0, 0))
    said = [truth, caption(Scene("blue", "circle", "up", "slowly", 0, 0)), "a circle a circle", truth.upper()]
    items = [BenchmarkItem("", None, "", references=(truth,))] * 4
    assert scores_of(ToyCaptionAccuracy(), [Prediction(text) for text in said], items) == {
        "colour": 0.5, "shape": 0.75, "direction": 0.5, "speed": 0.75, "exact": 0.5, "invalid": 0.25
    }  # fmt: skip


def test_normalising_keeps_the_words():
    assert normalise_text("\tA  red\nCircle ") == "a red circle"
