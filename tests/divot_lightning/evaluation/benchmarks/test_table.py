"""Benchmarks are found by name, with the split that is meant."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.table import BENCHMARKS, find_benchmark
from divot_lightning.testing.toy_shards import make_toy_shards


def test_the_first_split_is_the_default():
    assert [find_benchmark(name)[1] for name in BENCHMARKS] == [b.splits[0] for b in BENCHMARKS.values()]
    assert find_benchmark("mvbench", "state_change")[1] == "state_change"


@pytest.mark.parametrize(
    ("name", "split", "shown"),
    [("mvbensh", None, "'mvbensh'"), ("egoschema", "test", "no split 'test'; it has: subset")],
)
def test_unknown_names_are_refused_with_what_there_is(name, split, shown):
    with pytest.raises(UserError, match=shown):
        find_benchmark(name, split)


def test_toy_shards_give_four_questions_and_one_clip_each(tmp_path):
    make_toy_shards(tmp_path, train=1, validation=1, held_out=3)
    questions = BENCHMARKS["toy-questions"].read(tmp_path, "held_out")
    clips = BENCHMARKS["toy"].read(tmp_path, "held_out")
    assert len(questions.items) == 12
    assert len(clips.items) == 3
    assert {item.group for item in questions.items} == {"colour", "shape", "direction", "speed"}
    assert clips.items[0].facts["prompt"] == clips.items[0].references[0]
    assert set(clips.items[0].facts["attributes"]) == {"colour", "shape", "direction", "speed"}
