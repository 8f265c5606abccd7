"""Scores of stories of the toy world: real stories are perfect, and each kind of mistake lowers its own scores."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from divot_datamodules.toy.stories import NIGHT, sample_story
from divot_datamodules.toy.world import ToyWorld
from divot_lightning.evaluation.metrics.toy_story import ToyStory
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction

WORLD = ToyWorld(background=NIGHT)
PIXELS = ("jump_pixels", "speed_change")


def real(seed, continuous=False):
    """Return a story, its item, and the prediction that equals it."""
    story = sample_story(WORLD, "train", np.random.default_rng(seed), continuous=continuous)
    scenes = [asdict(scene) for scene in story.scenes]
    facts = {"scenes": scenes, "changes": story.changes, "continuous": continuous, "background": NIGHT}
    return story, BenchmarkItem(str(seed), None, "", facts=facts), told(story.sentences, story.scenes)


def told(sentences, scenes):
    return Prediction(
        sentences=tuple(sentences), clips=tuple(torch.from_numpy(WORLD.render(scene)) for scene in scenes)
    )


def scores_of(prediction, item):
    metric = ToyStory()
    measured = [metric.measure(prediction, item)]
    metric.update(measured, [item])
    found = {name: value.item() for name, value in metric.compute().items()}
    (own,) = metric.item_values(measured, [item])
    assert own == {name: value for name, value in found.items() if not math.isnan(value)}
    assert metric.counts() == {name: int(name in own) for name in found}
    return found


@pytest.mark.parametrize("continuous", [False, True])
def test_a_real_story_is_perfect(continuous):
    for seed in range(4):
        _, item, prediction = real(seed, continuous)
        found = scores_of(prediction, item)
        assert {value for name, value in found.items() if name not in PIXELS} == {1.0}
        assert all(found[name] < 0.3 if continuous else math.isnan(found[name]) for name in PIXELS)


def test_one_wrong_clip_is_wrong_in_its_own_scores_and_in_the_steps_around_it():
    story, item, _ = real(0)
    other = {"circle": "cross", "cross": "square", "square": "cross", "triangle": "cross"}[story.scenes[1].shape]
    scenes = [story.scenes[0], replace(story.scenes[1], shape=other), story.scenes[2]]
    found = scores_of(told(story.sentences, scenes), item)
    wrong = {"clip_2/shape", "clip_2/all", "clips", "story", "order", "consistency"}
    assert {name for name, value in found.items() if value == 0.0} == wrong
    assert found["as_asked"] == found["clip_1/all"] == found["clip_3/all"] == 1.0


def test_clips_in_another_order_are_out_of_order_but_consistent():
    story, item, _ = real(0)
    found = scores_of(told(story.sentences, [story.scenes[0], story.scenes[0], story.scenes[2]]), item)
    assert found["order"] == 0.0
    assert found["clip_2/all"] == 0.0
    assert found["clip_1/all"] == found["clip_3/all"] == 1.0
    assert found["consistency"] == 0.5  # the second step changes two attributes instead of one


def test_clips_are_measured_by_what_was_said_and_not_by_what_was_asked():
    _, item, _ = real(0)
    another, _, _ = real(1)
    found = scores_of(told(another.sentences, another.scenes), item)
    assert found["clips"] == found["told"] == found["order"] == 1.0
    assert found["as_asked"] == found["story"] == 0.0


@pytest.mark.parametrize("missing", ["clip", "sentence", "all", "sense"])
def test_what_is_missing_is_wrong(missing):
    _, item, prediction = real(0)
    clips, sentences = prediction.clips, prediction.sentences
    made = {
        "clip": Prediction(sentences=sentences, clips=(*clips[:2], None)),
        "sentence": Prediction(sentences=sentences[:2], clips=clips[:2]),
        "all": Prediction(),
        "sense": Prediction(sentences=("it is", *sentences[1:]), clips=clips),
    }
    found = scores_of(made[missing], item)
    assert found["told"] == found["as_asked"] == found["clips"] == found["story"] == found["order"] == 0.0
    assert found["clip_3/all"] == 0.0
    assert found["clip_1/all"] == float(missing in ("clip", "sentence"))
    assert found["consistency"] == (0.5 if missing in ("clip", "sentence") else 0.0)


def test_an_unreadable_clip_has_no_position():
    _, item, prediction = real(2, continuous=True)
    grey = torch.full_like(prediction.clips[0], 128)
    found = scores_of(replace(prediction, clips=(prediction.clips[0], grey, prediction.clips[2])), item)
    assert found["clip_2/all"] == found["consistency"] == 0.0
    assert all(math.isnan(found[name]) for name in PIXELS)
    found = scores_of(replace(prediction, clips=(*prediction.clips[:2], grey)), item)
    assert found["jump_pixels"] < 0.3


def test_jumps_and_changes_of_speed_are_measured_in_pixels():
    story, item, _ = real(2, continuous=True)
    moved = replace(story.scenes[1], start_column=story.scenes[1].start_column + 3.0)
    found = scores_of(told(story.sentences[:2], [story.scenes[0], moved]), item)
    assert found["jump_pixels"] == pytest.approx(3.0, abs=0.3)
    assert found["speed_change"] < 0.03
    other = {"slowly": "quickly", "quickly": "slowly"}[story.scenes[0].speed]
    changed = replace(story.scenes[1], speed=other)
    found = scores_of(told(story.sentences[:2], [story.scenes[0], changed]), item)
    assert found["speed_change"] == pytest.approx(0.35, abs=0.03)  # 0.6 - 0.25 pixels per frame
    assert found["jump_pixels"] < 0.3


def test_stories_are_averaged():
    metric, entries = ToyStory(), [real(0), real(1)]
    items = [item for _, item, _ in entries]
    measured = [metric.measure(entries[0][2], items[0]), metric.measure(Prediction(), items[1])]
    metric.update(measured, items)
    assert metric.compute()["story"].item() == 0.5
    assert metric.counts()["story"] == 2
