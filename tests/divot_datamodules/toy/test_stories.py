"""Stories of the toy world show what their sentences say, and nothing changes that a sentence does not change."""

import itertools
import json
import math

import numpy as np
import pytest

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.shards.sources import read_all
from divot_datamodules.tasks.built_in import StoryTask
from divot_datamodules.toy.oracle import read_clip
from divot_datamodules.toy.shards import write_toy_data
from divot_datamodules.toy.stories import NIGHT, follow, next_start, one_clip_instruction, sample_story
from divot_datamodules.toy.story_shards import ToyStoryConfig
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_datamodules.toy.world import ATTRIBUTES, SPEEDS, ToyWorld
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text

WORLD = ToyWorld(background=NIGHT)
KINDS = pytest.mark.parametrize("continuous", [False, True])


def stories(split, continuous, count=40, **more):
    return [
        sample_story(WORLD, split, np.random.default_rng(seed), continuous=continuous, **more) for seed in range(count)
    ]


def attributes(scene):
    return {name: getattr(scene, name) for name in ATTRIBUTES}


@KINDS
def test_sentences_say_what_the_scenes_are(continuous):
    for story in stories("train", continuous):
        assert follow(story.sentences) == list(zip(["", *story.changes], map(attributes, story.scenes), strict=True))
        assert story.instruction.startswith(f"Tell me what happens . {story.sentences[0]} . ")


@KINDS
def test_only_what_is_asked_about_changes(continuous):
    for story in stories("train", continuous):
        for change, (before, after) in zip(
            story.changes, itertools.pairwise(map(attributes, story.scenes)), strict=True
        ):
            changed = {name for name in ATTRIBUTES if before[name] != after[name]}
            assert changed == {change} or (continuous and not changed)
    assert {change for story in stories("train", False) for change in story.changes} == {"colour", "direction", "speed"}


@KINDS
def test_held_out_combinations_are_in_no_training_story_and_begin_every_held_out_one(continuous):
    known = set(WORLD.combinations("train"))
    combination = lambda scene: tuple(attributes(scene).values())  # noqa: E731
    assert all(combination(scene) in known for story in stories("train", continuous) for scene in story.scenes)
    assert not any(combination(story.scenes[0]) in known for story in stories("held_out", continuous))


def test_a_scene_continues_where_the_last_clip_ended():
    for story in stories("train", True, num_clips=4):
        for before, after in itertools.pairwise(story.scenes):
            last = WORLD.centres(before)[-1]
            step = SPEEDS[before.speed] * WORLD.size
            assert math.dist(last, (after.start_row, after.start_column)) == pytest.approx(step)
            assert next_start(WORLD, before) == pytest.approx((after.start_row, after.start_column))
        assert all(9 <= value <= 23 for scene in story.scenes for value in WORLD.centres(scene).flatten())


def test_more_than_two_changes_use_every_attribute_before_any_again():
    for story in stories("train", False, num_clips=5):
        assert len(set(story.changes[:3])) == 3


@KINDS
@pytest.mark.parametrize("look", ["day", "night"])
def test_the_oracle_reads_every_stored_clip_as_its_sentence_says(tmp_path, continuous, look):
    config = ToyStoryConfig(train=3, validation=1, held_out=3, continuous=continuous, look=look)
    assert write_toy_data(tmp_path, config)
    decode = SampleDecoder(ClipConfig())
    for split, count in (("train", 3), ("held_out", 3)):
        samples = [decode(raw, None) for raw in read_all(tmp_path / split)]
        assert [sample.num_clips for sample in samples] == [3] * count
        for sample in samples:
            world = ToyWorld(background=tuple(sample.text["background"]))
            said = [state for _, state in follow(sample.text["story"]["texts"])]
            readings = [read_clip(world, clip.numpy()) for clip in sample.video]
            assert [attributes(reading) for reading in readings] == said
            assert not read_clip(ToyWorld(background=(200, 90, 20)), sample.video[0].numpy()).valid
            for reading, scene in zip(readings, sample.text["scenes"], strict=True):
                assert np.allclose(reading.start, (scene["start_row"], scene["start_column"]), atol=0.4)
                assert math.hypot(*reading.velocity) == pytest.approx(SPEEDS[scene["speed"]] * 32, abs=0.06)


def test_a_sample_is_one_of_the_task_story(tmp_path):
    key, members = ToyStoryConfig(train=1).sample("train", 0)
    assert key == "train-000000"
    assert sorted(members) == ["clip0.mp4", "clip1.mp4", "clip2.mp4", "json"]
    text = json.loads(members["json"])
    segments = StoryTask("instruction").segments(text, np.random.default_rng(0), num_clips=3)
    assert segments[0] == Text(f"[INST] {text['story']['instruction']} [/INST]\n", learn=False)
    assert segments[1::2] == [Text(sentence, learn=True) for sentence in text["story"]["texts"]]
    assert segments[2::2] == [Clips(1, "generate", "video", learn=True)] * 3


def test_the_same_settings_give_the_same_bytes_and_other_settings_other_stories():
    config = ToyStoryConfig()
    assert config.sample("train", 3) == config.sample("train", 3)
    others = [ToyStoryConfig(seed=1), ToyStoryConfig(continuous=True), ToyStoryConfig(look="day")]
    assert all(other.sample("train", 3) != config.sample("train", 3) for other in others)
    assert config.sample("validation", 3) != config.sample("train", 3)
    with pytest.raises(UserError, match="num_clips is 0"):
        ToyStoryConfig(num_clips=0)


@KINDS
def test_a_pretrained_model_knows_every_word(continuous):
    tokenizer = toy_text_tokenizer()
    for story in stories("train", continuous):
        ids = tokenizer(" ".join([story.instruction, *story.sentences])).input_ids
        assert tokenizer.unk_token_id not in ids


def test_sentences_are_read_up_to_the_first_that_is_none_of_a_story():
    whole = "a red circle moves slowly to the left"
    assert follow([]) == follow(["it is green"]) == []
    assert [state["colour"] for _, state in follow([whole, "it is  green", "it is white"])] == ["red", "green", "white"]
    for wrong in (
        "it is circle",
        "it moves to the up",
        "it moves left",
        "it moves to the slowly",
        "it is",
        "green",
        "",
    ):
        assert len(follow([whole, wrong, "it is green"])) == 1, wrong
    assert follow([whole, "a blue cross moves quickly up"])[1][1]["shape"] == "cross"
    assert one_clip_instruction(follow([whole])[0][1], []).strip() == f"Tell me what happens . {whole} ."
