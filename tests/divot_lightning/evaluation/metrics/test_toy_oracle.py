"""Oracle scores: what cannot be read is wrong, and spread is measured where it can be."""

import math

import numpy as np
import pytest
import torch

from divot_datamodules.toy.world import ATTRIBUTES, Scene, ToyWorld
from divot_lightning.evaluation.metrics.toy_oracle import ToyOracle, read_clips, start_spread
from divot_lightning.parts.benchmarks import BenchmarkItem
from tests.divot_lightning.evaluation.measuring import clip_pairs, scores_of

WORLD = ToyWorld(size=32)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    generator = np.random.default_rng(seed)
    return [WORLD.sample("train", generator) for _ in range(count)]


def render(chosen: list[Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([WORLD.render(scene) for scene in chosen]))


def items_of(chosen: list[Scene], **changed: str) -> list[BenchmarkItem]:
    facts = [{"attributes": {name: getattr(scene, name) for name in ATTRIBUTES} | changed} for scene in chosen]
    for fact, scene in zip(facts, chosen, strict=True):
        fact |= {"caption": scene.shape, "start": [scene.start_row, scene.start_column]}
    return [BenchmarkItem("", None, "", facts=fact) for fact in facts]


def scores(clips: torch.Tensor, items: list[BenchmarkItem], metric: ToyOracle | None = None) -> dict[str, float]:
    return scores_of(metric or ToyOracle(), clip_pairs(clips, clips), items)


def test_rendered_clips_are_all_right():
    chosen = scenes(6)
    found = scores(render(chosen), items_of(chosen))
    assert found.pop("spread") == pytest.approx(1.0, abs=0.05)
    assert found == {"colour": 1.0, "shape": 1.0, "direction": 1.0, "speed": 1.0, "all": 1.0, "invalid": 0.0}


def test_grey_clips_are_invalid_and_wrong_in_everything():
    chosen, metric = scenes(4), ToyOracle()
    clips = render(chosen)
    clips[:2] = 128
    scores(clips[:3], items_of(chosen[:3]), metric)
    found = scores(clips[3:], items_of(chosen[3:]), metric)
    assert found["invalid"] == 0.5
    assert {found[name] for name in (*ATTRIBUTES, "all")} == {0.5}


def test_one_wrong_attribute_spoils_all_but_not_the_others():
    scene = Scene("red", "circle", "up", "slowly", 20.0, 16.0)
    found = scores(render([scene]), items_of([scene], colour="blue"))
    assert (found["colour"], found["shape"], found["all"]) == (0.0, 1.0, 0.0)


def test_start_error_is_the_mean_distance_over_valid_clips():
    item = BenchmarkItem(
        "", None, "", facts={"attributes": dict.fromkeys(ATTRIBUTES, ""), "caption": "", "start": [0, 0]}
    )
    starts = [(3.0, 4.0), None, (1.0, 0.0)]
    blank = dict.fromkeys(ATTRIBUTES, "x")
    measured = [{"reading": {"valid": start is not None, "start": start, **blank}} for start in starts]
    metric = ToyOracle(start_error=True)
    metric.update(measured, [item] * 3)
    assert (metric.compute()["start_error_pixels"], metric.counts()["start_error_pixels"]) == (3.0, 2)
    metric.reset()
    metric.update(measured[1:2], [item])
    assert math.isnan(metric.compute()["start_error_pixels"])


def test_spread_equals_the_pooled_standard_deviation_of_rendered_starts():
    chosen = [
        Scene("red", shape, "right", "slowly", row, column)
        for shape in ("circle", "square")
        for row, column in ((10.0, 11.0), (17.0, 15.0), (21.0, 10.0))
    ]
    spread, counted = start_spread(
        [reading.start for reading in read_clips(render(chosen))], [scene.shape for scene in chosen]
    )
    variances = [np.var([10.0, 17.0, 21.0], ddof=1), np.var([11.0, 15.0, 10.0], ddof=1)]
    assert counted == 6
    assert spread == pytest.approx(math.sqrt(np.mean(variances)), abs=0.1)


def test_clips_that_all_start_in_one_place_have_no_spread_however_different_the_captions_are():
    starts = [(row, 1.0) for row in (1.0, 1.0, 9.0, 9.0)]
    assert start_spread(starts, ["a", "a", "b", "b"]) == (0.0, 4)


def test_spread_without_two_valid_clips_of_a_caption_is_undefined():
    spread, counted = start_spread([(1.0, 1.0), (math.nan, math.nan)], ["a", "a"])
    assert math.isnan(spread)
    assert counted == 0
