import json
from dataclasses import replace

import numpy as np
import pytest

from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip
from divot_datamodules.shards.sources import read_all
from divot_datamodules.toy.oracle import read_clip
from divot_datamodules.toy.shards import SPLITS, ToyDataConfig, write_toy_data
from divot_datamodules.toy.world import ATTRIBUTES, ToyWorld, parse_caption
from divot_lightning.errors import UserError
from divot_lightning.testing.toy_shards import make_toy_shards

SMALL = ToyDataConfig(train=10, validation=4, held_out=5, samples_per_shard=2)


def samples_of(folder, split):
    return [raw for raw in read_all(folder / split)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_split_has_its_samples(tmp_path):
    assert write_toy_data(tmp_path, SMALL)
    assert [len(samples_of(tmp_path, split)) for split in SPLITS] == [10, 4, 5]
    assert len(list((tmp_path / "train").glob("*.tar"))) == 5


def test_the_oracle_reads_every_clip_as_its_caption_says(tmp_path):
    folder = make_toy_shards(tmp_path, train=8, validation=4, held_out=8)
    for split in SPLITS:
        for raw in samples_of(folder, split):
            text = json.loads(raw.members["json"])
            video = decode_clip(raw.members["mp4"], ClipConfig()).video
            reading = read_clip(ToyWorld(), video)
            seen = {name: getattr(reading, name) for name in ATTRIBUTES}
            assert seen == text["attributes"] == parse_caption(text["caption"])
            assert {turn["attribute"]: turn["answer"] for turn in text["questions"]} == seen
            assert np.allclose(reading.start, text["start"], atol=0.3)


def test_held_out_combinations_are_not_trained_on(tmp_path):
    folder = make_toy_shards(tmp_path, train=40, validation=20, held_out=20)
    seen = {
        split: {json.loads(raw.members["json"])["caption"] for raw in samples_of(folder, split)} for split in SPLITS
    }
    assert not seen["held_out"] & (seen["train"] | seen["validation"])


def test_validation_clips_are_other_clips_than_training():
    starts = {split: json.loads(SMALL.sample(split, 0)[1]["json"])["start"] for split in SPLITS}
    assert len({tuple(start) for start in starts.values()}) == 3


def test_the_same_settings_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_toy_data(tmp_path / name, SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    write_toy_data(tmp_path / "c", replace(SMALL, seed=1))
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_a_second_call_does_nothing(tmp_path):
    write_toy_data(tmp_path, SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not write_toy_data(tmp_path, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_interrupted_call_is_continued_to_the_same_bytes(tmp_path, monkeypatch):
    real, made = ToyDataConfig.sample, []

    def stop_after_seven(settings, split, number):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(number)
        return real(settings, split, number)

    monkeypatch.setattr(ToyDataConfig, "sample", stop_after_seven)
    with pytest.raises(KeyboardInterrupt):
        write_toy_data(tmp_path / "a", SMALL)
    monkeypatch.setattr(ToyDataConfig, "sample", real)
    finished = (tmp_path / "a" / "train" / "shard-000000.tar").stat().st_mtime_ns
    assert write_toy_data(tmp_path / "a", SMALL)
    assert (tmp_path / "a" / "train" / "shard-000000.tar").stat().st_mtime_ns == finished
    write_toy_data(tmp_path / "b", SMALL)
    assert {k: v for k, v in contents(tmp_path / "a").items() if k.endswith("tar")} == {
        k: v for k, v in contents(tmp_path / "b").items() if k.endswith("tar")
    }
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_folder_of_other_settings_is_refused_before_anything_is_written(tmp_path):
    write_toy_data(tmp_path, SMALL)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="seed is 0, not 1"):
        write_toy_data(tmp_path, replace(SMALL, seed=1))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("name", "value"), [("size", 8), ("size", 33), ("train", 0), ("samples_per_shard", 0)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        replace(SMALL, **{name: value})
