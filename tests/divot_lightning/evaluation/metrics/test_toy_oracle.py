"""Oracle scores: what cannot be read is wrong, and spread is measured where it can be."""

import math

import numpy as np
import pytest
import torch

from divot_datamodules.toy.world import ATTRIBUTES, Reading, Scene, ToyWorld
from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.toy_oracle import (
    ToyOracleAccuracy,
    count_correct,
    read_clips,
    start_error,
    start_spread,
)

WORLD = ToyWorld(size=32)


def scenes(count: int, seed: int = 0) -> list[Scene]:
    generator = np.random.default_rng(seed)
    return [WORLD.sample("train", generator) for _ in range(count)]


def render(chosen: list[Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([WORLD.render(scene) for scene in chosen]))


def attributes(scene: Scene) -> dict[str, str]:
    return {name: getattr(scene, name) for name in ATTRIBUTES}


def test_rendered_clips_are_all_right():
    chosen = scenes(6)
    metric = ToyOracleAccuracy()
    metric.update(render(chosen), [attributes(scene) for scene in chosen])
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "colour": 1.0, "shape": 1.0, "direction": 1.0, "speed": 1.0, "all": 1.0, "invalid": 0.0
    }  # fmt: skip


def test_grey_clips_are_invalid_and_wrong_in_everything():
    chosen = scenes(4)
    clips = render(chosen)
    clips[:2] = 128
    metric = ToyOracleAccuracy()
    metric.update(clips[:3], [attributes(scene) for scene in chosen[:3]])
    metric.update(clips[3:], [attributes(scene) for scene in chosen[3:]])
    scores = metric.compute()
    assert scores["invalid"] == 0.5
    assert {scores[name].item() for name in (*ATTRIBUTES, "all")} == {0.5}


def test_one_wrong_attribute_spoils_all_but_not_the_others():
    scene = Scene("red", "circle", "up", "slowly", 20.0, 16.0)
    metric = ToyOracleAccuracy()
    metric.update(render([scene]), [attributes(scene) | {"colour": "blue"}])
    scores = metric.compute()
    assert (scores["colour"], scores["shape"], scores["all"]) == (0.0, 1.0, 0.0)


def test_unequal_lengths_are_refused():
    with pytest.raises(UserError, match="1 clips were read but 0"):
        count_correct([Reading(False)], [])


def test_start_error_is_the_mean_distance_over_valid_clips():
    readings = [Reading(True, start=(3.0, 4.0)), Reading(False), Reading(True, start=(1.0, 0.0))]
    assert start_error(readings, [(0.0, 0.0)] * 3) == (3.0, 2)
    assert math.isnan(start_error([Reading(False)], [(0.0, 0.0)])[0])


def test_spread_equals_the_pooled_standard_deviation_of_rendered_starts():
    chosen = [
        Scene("red", shape, "right", "slowly", row, column)
        for shape in ("circle", "square")
        for row, column in ((10.0, 11.0), (17.0, 15.0), (21.0, 10.0))
    ]
    spread, counted = start_spread(read_clips(render(chosen)), [scene.shape for scene in chosen])
    variances = [np.var([10.0, 17.0, 21.0], ddof=1), np.var([11.0, 15.0, 10.0], ddof=1)]
    assert counted == 6
    assert spread == pytest.approx(math.sqrt(np.mean(variances)), abs=0.1)


def test_clips_that_all_start_in_one_place_have_no_spread_however_different_the_captions_are():
    readings = [Reading(True, start=(row, 1.0)) for row in (1.0, 1.0, 9.0, 9.0)]
    assert start_spread(readings, ["a", "a", "b", "b"]) == (0.0, 4)


def test_spread_without_two_valid_clips_of_a_caption_is_undefined():
    spread, counted = start_spread([Reading(True, start=(1.0, 1.0)), Reading(False)], ["a", "a"])
    assert math.isnan(spread)
    assert counted == 0
