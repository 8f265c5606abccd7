"""A run tells the stories of a benchmark, with the same words and clips as `DivotPipeline.story`."""

import json
import math

import pytest

from divot_datamodules.toy.shards import write_toy_data
from divot_datamodules.toy.stories import NIGHT
from divot_datamodules.toy.story_shards import ToyStoryConfig
from divot_datamodules.toy.world import ToyWorld
from divot_lightning import DivotPipeline, StorySampling
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.stories import ToyStories
from divot_lightning.evaluation.config import EvaluationConfig, GenerationConfig
from divot_lightning.evaluation.metrics.toy_oracle import read_clips
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.runners.question_runner import item_seed
from divot_lightning.evaluation.scores import load_scores


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    write_toy_data(folder, ToyStoryConfig(train=1, validation=1, held_out=3, continuous=True))
    return folder


def config(stories, output, clips="told", **more):
    benchmark = {"class_path": "toy-stories", "init_args": {"clips": clips}}
    return EvaluationConfig(benchmark, str(stories), output=str(output), max_new_tokens=4, **more)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def scores_of(folder):
    return {score.name.partition("/")[2]: score for score in load_scores(folder / "scores.json")}


def test_a_story_is_the_one_that_the_pipeline_tells(tiny_run, stories, tmp_path):
    evaluate(tiny_run, config(stories, tmp_path, seed=5, temperature=0.5))
    (first, second, _) = ToyStories().items(stories, "held_out").items
    told = DivotPipeline.from_pretrained(tiny_run).story(
        second.facts["instruction"],
        3,
        seed=item_seed(item_seed(5, 1), 0),
        sampling=StorySampling(max_new_tokens=4, temperature=0.5),
    )
    row = rows_of(tmp_path)[1]
    assert first.id != row["id"] == second.id
    assert row["sentences"] == [part.text for part in told.parts]
    world, clips = ToyWorld(background=NIGHT), [part.video_FCHW for part in told.parts]
    reasons = ["no clip" if clip is None else read_clips(clip[None], world)[0].reason for clip in clips]
    assert [reading["reason"] for reading in row["readings"]] == reasons
    kept = json.loads((tmp_path / "generation" / "1" / "story.json").read_text())
    assert [part["text"] for part in kept["parts"]] == row["sentences"]


def test_real_clips_are_encoded_and_decoded_in_order(tiny_run, stories, tmp_path):
    evaluate(tiny_run, config(stories, tmp_path, "reconstructed", limit=2))
    items = ToyStories().items(stories, "held_out").items
    rows = rows_of(tmp_path)
    assert [row["sentences"] for row in rows] == [item.facts["sentences"] for item in items[:2]]
    assert all(len(row["readings"]) == 3 for row in rows)
    found = scores_of(tmp_path)
    assert found["told"].value == found["as_asked"].value == 1.0
    assert found["story"].value == 0.0  # the de-tokenizer is not trained
    assert found["told"].protocol["benchmark_settings"] == {"clips": "reconstructed"}
    assert math.isnan(found["jump_pixels"].value)


def test_independent_clips_have_an_instruction_of_their_own(stories):
    item = ToyStories().items(stories, "held_out").items[0]
    assert ToyStories().requests(item) == [(item.facts["instruction"], 3)]
    requests = ToyStories("independent").requests(item)
    assert [count for _, count in requests] == [1, 1, 1]
    assert requests[0][0] == item.facts["instruction"]
    for (instruction, _), scene in zip(requests, item.facts["scenes"], strict=True):
        assert f"a {scene['colour']} {scene['shape']} moves {scene['speed']} " in instruction
        assert instruction.endswith("where does it move ? where does it move ?")


def test_a_stopped_evaluation_continues_with_what_is_missing(tiny_run, stories, tmp_path):
    evaluate(tiny_run, config(stories, tmp_path))
    whole = rows_of(tmp_path)
    (tmp_path / "predictions.jsonl").write_text(json.dumps({**whole[0], "sentences": ["kept"]}) + "\n")
    evaluate(tiny_run, config(stories, tmp_path))
    again = rows_of(tmp_path)
    assert again[0]["sentences"] == ["kept"]
    assert again[1:] == whole[1:]


def test_settings_without_effect_and_other_data_are_refused(tiny_run, stories, toy_data, tmp_path):
    with pytest.raises(UserError, match="store_clips has no effect on toy-stories"):
        evaluate(tiny_run, config(stories, tmp_path, generation=GenerationConfig(store_clips=False)))
    with pytest.raises(UserError, match="is no story of the toy world; make some: divot data toy-stories"):
        evaluate(tiny_run, config(toy_data, tmp_path))
    with pytest.raises(UserError, match="clips is 'real'; choose one of: told, independent, reconstructed"):
        evaluate(tiny_run, config(stories, tmp_path, "real"))


def test_the_commands_make_stories_and_measure_them(tiny_run, tmp_path, capsys):
    words = ["--train", "1", "--validation", "1", "--held-out", "2", "--num-clips", "2", "--look", "day"]
    assert main(["data", "toy-stories", str(tmp_path / "data"), *words]) == 0
    assert "1 training, 1 validation, 2 held-out stories of 2 clips; made" in capsys.readouterr().out
    chosen = ["--benchmark", "toy-stories", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(tiny_run), *chosen, "--max_new_tokens", "4"]) == 0
    assert "toy-stories/story\t0" in capsys.readouterr().out
    found = scores_of(tmp_path / "out")
    assert "clip_2/all" in found
    assert "clip_3/all" not in found
    assert found["consistency"].count == 2


def test_reconstructions_of_story_shards_have_an_item_per_clip(tiny_run, stories, tmp_path):
    evaluate(tiny_run, EvaluationConfig("reconstruction", str(stories / "held_out"), output=str(tmp_path), limit=4))
    assert [row["id"].rpartition("-")[2] for row in rows_of(tmp_path)] == [
        "000000.clip0",
        "000000.clip1",
        "000000.clip2",
        "000001.clip0",
    ]
