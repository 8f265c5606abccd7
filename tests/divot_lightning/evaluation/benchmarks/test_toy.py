"""Benchmarks are found by name, with the split that is meant; toy shards are read as benchmarks."""

import pytest

from divot_datamodules.toy.open_captions import open_caption
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.toy import ToyOpenCaptions, ToyQuestions, read_toy_clips
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.parts.benchmarks import FileSlice
from divot_lightning.parts.registries.kinds import BENCHMARKS
from divot_lightning.testing.toy_shards import make_toy_shards

OURS = [part.name for part in BENCHMARKS.installed() if part.distribution == "divot-lightning"]
MVBENCH = "divot_lightning.evaluation.benchmarks.multiple_choice.MVBench"


@pytest.mark.parametrize("name", [name for name in OURS if name != "msrvtt-generation"])
def test_the_first_split_is_the_default(name):
    benchmark, shown, split = find_benchmark(EvaluationConfig(name, "."))
    assert (shown, split) == (name, benchmark.splits[0])


@pytest.mark.parametrize("given", ["mvbench", "MVBench", MVBENCH])
def test_a_benchmark_is_named_by_short_name_class_or_path_and_scores_by_its_short_name(given):
    for benchmark in (given, {"class_path": given, "init_args": {"choice_rule": "first_letter"}}):
        found, name, split = find_benchmark(EvaluationConfig(benchmark, ".", split="state_change"))
        assert (name, split) == ("mvbench", "state_change")
        assert found.choice_rule == ("letter_or_text" if benchmark is given else "first_letter")


@pytest.mark.parametrize(
    ("name", "split", "shown"),
    [
        ("mvbensh", None, "benchmark 'mvbensh' is not installed; installed: .*Did you mean 'mvbench'"),
        ("egoschema", "test", "no split 'test'; it has: subset"),
        ("divot_heads.mse.MSEHead", None, "is no benchmark"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(name, split, shown):
    with pytest.raises(UserError, match=shown):
        find_benchmark(EvaluationConfig(name, ".", split=split))


def test_toy_shards_give_four_questions_and_one_clip_each(tmp_path):
    make_toy_shards(tmp_path, train=1, validation=1, held_out=3)
    questions = ToyQuestions().items(tmp_path, "held_out")
    clips = read_toy_clips(tmp_path, "held_out")
    assert len(questions.items) == 12
    assert len(clips.items) == 3
    assert {item.group for item in questions.items} == {"colour", "shape", "direction", "speed"}
    assert clips.items[0].facts["prompt"] == clips.items[0].references[0]
    assert set(clips.items[0].facts["attributes"]) == {"colour", "shape", "direction", "speed"}


def test_open_captions_fit_their_clips_and_closed_ones_are_the_limit(tmp_path):
    make_toy_shards(tmp_path, train=1, validation=1, held_out=12)
    opened = ToyOpenCaptions().items(tmp_path, "held_out").items
    closed = ToyOpenCaptions(named=1.0).items(tmp_path, "held_out").items
    plain = read_toy_clips(tmp_path, "held_out").items
    assert [item.facts["prompt"] for item in closed] == [item.facts["prompt"] for item in plain]
    assert [item.id for item in opened] == [item.id for item in plain]
    for item in opened:
        assert item.facts["prompt"] == open_caption(item.facts["named"])
        assert item.facts["named"].items() <= item.facts["attributes"].items()
    assert {len(item.facts["named"]) for item in opened} >= {1, 2, 3}
    with pytest.raises(UserError, match="named is 2"):
        ToyOpenCaptions(named=2)


def test_videos_of_local_shards_are_read_when_they_are_needed(tmp_path):
    from divot_datamodules.shards.sources import read_all

    make_toy_shards(tmp_path, train=1, validation=1, held_out=3)
    clips = read_toy_clips(tmp_path, "held_out")
    stored = [raw for path in clips.files.values() for raw in read_all(str(path))]
    assert all(isinstance(item.media, FileSlice) for item in clips.items)
    assert [item.content for item in clips.items] == [raw.members["mp4"] for raw in stored]
    assert [item.media.size for item in clips.items] == [len(raw.members["mp4"]) for raw in stored]
