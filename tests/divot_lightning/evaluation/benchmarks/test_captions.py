"""MSR-VTT is read with all captions as references and one of them as a prompt."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.captions import read_msrvtt


@pytest.fixture
def msrvtt():
    videos = [{"video_id": f"video{n}", "split": "test", "start time": 0.0, "end time": 9.0} for n in range(4)]
    videos += [{"video_id": "video9", "split": "validate"}]
    sentences = [{"video_id": f"video{n}", "caption": f"c{n}{m}", "sen_id": m} for n in range(4) for m in range(20)]
    sentences.append({"video_id": "video9", "caption": "other"})
    info = {"videos": videos, "sentences": sentences}
    return {"test_videodatainfo.json": info, **{f"TestVideo/video{n}.mp4": "" for n in range(3)}}


def test_each_video_has_its_captions_and_one_prompt_among_them(lay, msrvtt):
    data = read_msrvtt(lay(msrvtt), "test")
    assert [item.id for item in data.items] == ["video0", "video1", "video2", "video3"]
    assert all(len(item.references) == 20 and item.facts["prompt"] in item.references for item in data.items)
    assert data.missing == ["TestVideo/video3"]


def test_prompts_are_the_same_every_time_and_not_all_of_one_place(lay, msrvtt):
    folder = lay(msrvtt)
    first, again = (read_msrvtt(folder, "test").items for _ in range(2))
    assert first == again
    assert len({item.references.index(item.facts["prompt"]) for item in first}) > 1


def test_splits_are_kept_apart(lay, msrvtt):
    info = msrvtt["test_videodatainfo.json"]
    data = read_msrvtt(lay({"train_val_videodatainfo.json": info, "videos/x.mp4": ""}), "validate")
    assert [item.id for item in data.items] == ["video9"]


def test_videos_are_found_in_all_folders_that_are_unpacked(lay, msrvtt):
    info = msrvtt["test_videodatainfo.json"]
    folders = {"TestVideo/video0.mp4": "", "TrainValVideo/video9.mp4": ""}
    data = read_msrvtt(lay({"train_val_videodatainfo.json": info, **folders}), "validate")
    assert [item.media_name for item in data.items] == ["TrainValVideo/video9.mp4"]


def test_videos_of_all_splits_in_one_folder_are_found(lay, msrvtt):
    info = msrvtt["test_videodatainfo.json"]
    data = read_msrvtt(
        lay({"test_videodatainfo.json": info, **{f"videos/all/video{n}.mp4": "" for n in range(4)}}), "test"
    )
    assert data.missing == []


def test_missing_files_are_named(lay, msrvtt):
    with pytest.raises(UserError, match=r"train_val_videodatainfo\.json nor videodatainfo\.json"):
        read_msrvtt(lay(msrvtt), "train")
