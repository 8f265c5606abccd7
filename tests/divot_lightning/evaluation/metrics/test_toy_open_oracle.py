"""Scores of open captions: what is named must be right, what is open must vary as the data do."""

import math

import numpy as np
import pytest
import torch

from divot_datamodules.toy.open_captions import name_some
from divot_datamodules.toy.world import ATTRIBUTES, VALUES, ToyWorld
from divot_lightning.evaluation.metrics.toy_open_oracle import ToyOpenOracle
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction

WORLD = ToyWorld(size=32)
RED = {"colour": "red", "shape": "circle", "direction": "up", "speed": "slowly"}
COMBINATIONS = WORLD.combinations("train")
INVALID = {"valid": False, "start": None, **dict.fromkeys(ATTRIBUTES)}


def reading(scene, **changed):
    attributes = {name: getattr(scene, name) for name in ATTRIBUTES}
    return {"valid": True, "start": [scene.start_row, scene.start_column], **attributes, **changed}


def shown(start=(0.0, 0.0), **changed):
    return {"valid": True, "start": start, **RED, **changed}


def item_of(named, start=(0.0, 0.0)):
    return BenchmarkItem("", None, "", facts={"named": named, "start": start})


def scores(readings, items):
    metric = ToyOpenOracle()
    metric.update([{"reading": each} for each in readings], items)
    return {name: value.item() for name, value in metric.compute().items()}, metric.counts()


def ideal(count, probability=0.5, seed=0):
    """Sample clips of the training split, captions of theirs, and other training clips that fit these captions."""
    rng = np.random.default_rng(seed)
    named = [name_some(reading(WORLD.sample("train", rng)), probability, rng) for _ in range(count)]
    readings = []
    for each in named:
        combination = next(
            found
            for found in (
                dict(zip(ATTRIBUTES, COMBINATIONS[at], strict=True)) for at in rng.permutation(len(COMBINATIONS))
            )
            if each.items() <= found.items()
        )
        readings.append({"valid": True, "start": rng.normal(size=2).tolist(), **combination})
    return readings, [item_of(each, rng.normal(size=2).tolist()) for each in named]


def test_rendered_clips_show_what_their_captions_name():
    rng, metric = np.random.default_rng(0), ToyOpenOracle()
    scenes = [WORLD.sample("held_out", rng) for _ in range(6)]
    for scene in scenes:
        item = item_of(name_some(reading(scene), 0.5, rng), [scene.start_row, scene.start_column])
        clip = torch.from_numpy(WORLD.render(scene))
        metric.update([metric.measure(Prediction(clip=clip, original=clip), item)], [item])
    found = metric.compute()
    assert (found["named"], found["valid"]) == (1.0, 1.0)


def test_clips_of_the_data_are_right_varied_and_near_the_data():
    found, counts = scores(*ideal(4000))
    assert (found["named"], found["valid"]) == (1.0, 1.0)
    assert found["variety"] == pytest.approx(1.0, abs=0.02)
    assert found["spread"] == pytest.approx(1.0, abs=0.05)
    for name in ATTRIBUTES:
        expected = math.sqrt((len(VALUES[name]) - 1) / (2 * math.pi * counts[f"total_variation_{name}"]))
        assert found[f"total_variation_{name}"] < 2.5 * expected


def test_invalid_clips_are_wrong_and_do_not_count_where_something_is_open():
    found, counts = scores([INVALID, shown(), INVALID], [item_of({}), item_of({"colour": "red"}), item_of(RED)])
    assert found["valid"] == found["named"] == pytest.approx(1 / 3)
    assert (found["named_0"], found["named_1"], found["named_4"]) == (0.0, 1.0, 0.0)
    assert (found["colour"], counts["colour"]) == (0.5, 2)
    assert counts["total_variation_speed"] == 1
    assert math.isnan(found["named_2"])


def test_a_wrong_value_counts_only_if_the_caption_names_the_attribute():
    captions = [item_of({"colour": "blue"}), item_of({"shape": "circle"})]
    found, _ = scores([shown(), shown(colour="white")], captions)
    assert (found["named"], found["colour"], found["shape"]) == (0.5, 0.0, 1.0)


def test_total_variation_is_the_distance_to_the_frequencies_of_training_clips():
    found, counts = scores([shown()] * 3 + [shown(speed="quickly")], [item_of({"colour": "red"})] * 4)
    red = [c for c in COMBINATIONS if c[0] == "red"]
    slow, circles = (sum(value in c for c in red) / len(red) for value in ("slowly", "circle"))
    assert found["total_variation_speed"] == pytest.approx(abs(0.75 - slow))
    assert found["total_variation_shape"] == pytest.approx(1 - circles)
    assert math.isnan(found["total_variation_colour"])
    assert (counts["total_variation_speed"], counts["total_variation"]) == (4, 4)


def test_one_answer_per_caption_has_no_variety_though_all_answers_together_are_like_the_data():
    readings, items = ideal(4000)
    first = {}
    for each, item in zip(readings, items, strict=True):
        first.setdefault(tuple(item.facts["named"].items()), each)
    found, _ = scores([first[tuple(item.facts["named"].items())] for item in items], items)
    assert found["variety"] == 0.0
    assert found["spread"] == pytest.approx(0.0, abs=1e-9)
    assert found["named"] == 1.0


def test_variety_is_that_of_pairs_of_clips():
    """Two of three pairs differ in speed; of training clips that fit everything else, half do by chance."""
    named = {"colour": "red", "shape": "circle", "direction": "down"}
    speeds = {c[3] for c in COMBINATIONS if c[:3] == tuple(named.values())}
    assert len(speeds) == 2
    found, counts = scores([shown(), shown(), shown(speed="quickly")], [item_of(named)] * 3)
    assert (found["variety"], counts["variety"]) == (pytest.approx((2 / 3) / 0.5), 3)


def test_captions_that_leave_nothing_open_have_no_variety_to_measure():
    found, counts = scores([shown(), shown()], [item_of(RED)] * 2)
    assert math.isnan(found["variety"])
    assert counts["variety"] == 0
