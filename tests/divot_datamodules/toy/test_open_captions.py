"""Open captions name a random part of a clip's attributes, in words that the model knows."""

import itertools
from collections import Counter

import numpy as np
import pytest

from divot_datamodules.toy.open_captions import (
    OpenGenerateTask,
    name_some,
    open_caption,
    value_probabilities,
)
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_datamodules.toy.world import ATTRIBUTES, VALUES, Scene, ToyWorld, caption
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sources import SampleError

CROSS = {"colour": "red", "shape": "cross", "direction": "lower left", "speed": "slowly"}
EVERY_PROMPT = [
    {name: value for name, value in zip(ATTRIBUTES, values, strict=True) if value}
    for values in itertools.product(*((None, *VALUES[name]) for name in ATTRIBUTES))
]


def test_captions_differ_and_have_known_words():
    assert len(EVERY_PROMPT) == 7 * 5 * 9 * 3
    assert len({open_caption(named) for named in EVERY_PROMPT}) == len(EVERY_PROMPT)
    tokenizer = toy_text_tokenizer()
    ids = tokenizer([open_caption(named) for named in EVERY_PROMPT])["input_ids"]
    assert all(tokenizer.unk_token_id not in row for row in ids)


def test_a_caption_that_names_everything_is_that_of_the_data():
    scene = ToyWorld().sample("train", np.random.default_rng(0))
    assert open_caption({name: getattr(scene, name) for name in ATTRIBUTES}) == caption(scene)
    assert open_caption({}) == "a shape moves"


def test_each_attribute_is_named_with_the_probability_independently():
    rng = np.random.default_rng(0)
    drawn = Counter(frozenset(name_some(CROSS, 0.25, rng)) for _ in range(20_000))
    for count in range(len(ATTRIBUTES) + 1):
        for named in itertools.combinations(ATTRIBUTES, count):
            expected = 0.25**count * 0.75 ** (4 - count)
            assert drawn[frozenset(named)] / 20_000 == pytest.approx(expected, abs=4 * (expected / 20_000) ** 0.5)


def test_probabilities_are_the_frequencies_of_rendered_training_clips():
    rng = np.random.default_rng(0)
    scenes = [ToyWorld().sample("train", rng) for _ in range(40_000)]
    fitting = [scene for scene in scenes if (scene.shape, scene.direction) == ("cross", "up")]
    frequencies = Counter(scene.colour for scene in fitting)
    found = value_probabilities({"shape": "cross", "direction": "up"}, "colour")
    for value, probability in zip(VALUES["colour"], found, strict=True):
        assert frequencies[value] / len(fitting) == pytest.approx(probability, abs=4 * (0.25 / len(fitting)) ** 0.5)


def test_some_training_clip_fits_whatever_is_left_open():
    for named in EVERY_PROMPT:
        for attribute in set(ATTRIBUTES) - set(named):
            assert sum(value_probabilities(named, attribute)) == pytest.approx(1.0)


def test_the_task_opens_a_caption_anew_each_time():
    task, rng = OpenGenerateTask(), np.random.default_rng(0)
    prompts = [task.segments({"attributes": CROSS}, rng) for _ in range(64)]
    texts = {text.text for text, clip in prompts}
    assert len(texts) > 8
    parts = [
        {name: CROSS[name] for name in names}
        for count in range(5)
        for names in itertools.combinations(ATTRIBUTES, count)
    ]
    assert texts <= {open_caption(named) for named in parts}
    assert prompts[0][1] == Clips(1, "generate")


@pytest.mark.parametrize(
    ("named", "text"), [(1.0, caption(Scene(**CROSS, start_row=0, start_column=0))), (0.0, "a shape moves")]
)
def test_a_task_that_names_all_or_nothing(named, text):
    segments = OpenGenerateTask(named=named).segments({"attributes": CROSS}, np.random.default_rng(0))
    assert segments[0] == Text(text, learn=False)


@pytest.mark.parametrize("named", [-0.1, 1.5, float("nan")])
def test_a_number_that_is_no_probability_is_refused(named):
    with pytest.raises(UserError, match="0 \\(name nothing\\) to 1"):
        OpenGenerateTask(named=named)


@pytest.mark.parametrize("text", [{}, {"attributes": {**CROSS, "colour": "pink"}}, {"attributes": ["red"]}])
def test_a_sample_that_is_no_toy_clip_is_left_to_other_tasks(text):
    with pytest.raises(SampleError) as raised:
        OpenGenerateTask().segments(text, np.random.default_rng(0))
    assert raised.value.reason == "missing_attribute"
