"""The Perception Test is read with its videos cut where their end would reveal the answer."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.perception_test import read_perception_test


@pytest.fixture
def perception():
    def question(number, **more):
        return {"id": number, "question": f"q{number}", "options": ["x", "y", "z"], "area": "memory", **more}

    annotations = {
        "video_1": {
            "mc_question": [question(0, answer_id=2), question(1, answer_id=0)],
            "metadata": {"frame_rate": 25.0, "num_frames": 700},
        },
        "video_2": {"mc_question": [question(0, answer_id=1)]},
    }
    hidden = {"video_9": {"mc_question": [question(5)]}}
    files = {"mc_question_valid.json": annotations, "all_test.json": hidden}
    files |= {"cut_frame_mapping_valid.json": {"video_1": 310, "video_2": -1}}
    return {**files, "videos/video_1.mp4": "", "videos/video_2.mp4": ""}


def test_each_question_of_each_video_is_an_item(lay, perception):
    data = read_perception_test(lay(perception), "valid")
    ids = [("video_1/0", 2), ("video_1/1", 0), ("video_2/0", 1)]
    assert [(item.id, item.choice) for item in data.items] == ids
    assert {item.group for item in data.items} == {"memory"}


def test_videos_are_shown_up_to_the_frame_of_their_cut(lay, perception):
    data = read_perception_test(lay(perception), "valid")
    assert [item.bounds for item in data.items] == [(0.0, 12.4), (0.0, 12.4), None]
    assert sorted(data.files) == ["cut_frame_mapping_valid.json", "mc_question_valid.json"]


def test_without_the_file_of_cuts_whole_videos_are_shown_only_if_asked_for(lay, perception):
    del perception["cut_frame_mapping_valid.json"]
    folder = lay(perception)
    with pytest.raises(UserError, match=r"has no cut_frame_mapping_valid\.json(.|\n)*--split valid_uncut"):
        read_perception_test(folder, "valid")
    data = read_perception_test(folder, "valid_uncut")
    assert [item.bounds for item in data.items] == [None] * 3


def test_whole_videos_are_shown_where_the_split_says_so_though_the_file_is_there(lay, perception):
    data = read_perception_test(lay(perception), "valid_uncut")
    assert [item.bounds for item in data.items] == [None] * 3
    assert "cut_frame_mapping_valid.json" not in data.files


@pytest.mark.parametrize(
    ("cuts", "metadata", "shown"),
    [
        ({"video_1": 310}, {"frame_rate": 25.0}, "no field 'video_2'"),
        ({"video_1": 310.5, "video_2": -1}, {"frame_rate": 25.0}, "'video_1' is '310.5'"),
        ({"video_1": 310, "video_2": -1}, {}, "no field 'frame_rate'"),
        ({"video_1": 310, "video_2": -1}, {"frame_rate": 0}, "at frame 310 of 0.0 per second"),
    ],
)
def test_wrong_cuts_are_named(lay, perception, cuts, metadata, shown):
    perception["cut_frame_mapping_valid.json"] = cuts
    perception["mc_question_valid.json"]["video_1"]["metadata"] = metadata
    with pytest.raises(UserError, match=shown):
        read_perception_test(lay(perception), "valid")


def test_questions_without_answers_are_read_too(lay, perception):
    data = read_perception_test(lay(perception), "test")
    assert data.items[0].choice is None
    assert data.items[0].bounds is None  # published cut
    assert data.missing == ["videos/video_9"]


def test_the_sample_is_read_by_the_name_that_it_is_published_under(lay, perception):
    sample = perception.pop("mc_question_valid.json")
    data = read_perception_test(lay({**perception, "sample.json": sample}), "sample")
    assert len(data.items) == 3
    assert list(data.files) == ["sample.json"]


def test_splits_unpacked_side_by_side_are_found(lay, perception):
    for name in ("video_1", "video_2"):
        perception[f"valid/videos/{name}.mp4"] = perception.pop(f"videos/{name}.mp4")
    data = read_perception_test(lay(perception), "valid")
    assert data.missing == []
    assert data.items[0].media_name == "valid/videos/video_1.mp4"


def test_missing_files_are_named(lay, perception):
    with pytest.raises(UserError, match=r"mc_question_train\.json nor all_train\.json nor train\.json"):
        read_perception_test(lay(perception), "train")


def test_a_folder_without_videos_is_named(lay, perception):
    folder = lay({"mc_question_valid.json": perception["mc_question_valid.json"]})
    with pytest.raises(UserError, match="no folder videos nor valid/videos nor valid"):
        read_perception_test(folder, "valid")
