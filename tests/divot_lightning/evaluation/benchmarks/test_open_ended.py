"""Open-ended question benchmarks are read from their published forms."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.open_ended import read_activitynet_qa, read_msvd_qa


@pytest.fixture
def pair():
    questions = [
        {"question_id": "v_1_a", "video_name": "1QIUV7WYKXg", "question": "is it on ?"},
        {"question_id": "v_2_a", "video_name": "name-2", "question": "what colour ?"},
    ]
    answered = [{"question_id": "v_2_a", "answer": "red", "type": 4}, {"question_id": "v_1_a", "answer": "yes"}]
    files = {"test_q.json": questions, "test_a.json": answered}
    return {**files, "all_test/v_1QIUV7WYKXg.webm": "", "all_test/name-2.mp4": ""}


def test_questions_and_answers_meet_by_their_ids(lay, pair):
    data = read_activitynet_qa(lay(pair), "test")
    assert [(item.id, item.answer) for item in data.items] == [("v_1_a", "yes"), ("v_2_a", "red")]
    assert [item.media.name for item in data.items] == ["v_1QIUV7WYKXg.webm", "name-2.mp4"]


def test_a_question_without_an_answer_is_named(lay, pair):
    pair["test_a.json"].pop()
    with pytest.raises(UserError, match=r"test_q\.json, entry 0: the question 'v_1_a' has no answer"):
        read_activitynet_qa(lay(pair), "test")


def test_msvd_follows_the_mapping_of_its_videos(lay):
    entries = [
        {"id": 30, "video_id": 1301, "question": "what is chopped ?", "answer": "onion"},
        {"id": 31, "video_id": 1302, "question": "who sings ?", "answer": "man"},
        {"id": 32, "video_id": 1303, "question": "who ?", "answer": "woman"},
    ]
    mapping = "-4wsuPCjDBc_5_15 vid1301\nJntMAcTlOF0_50_70 vid1303\n"
    videos = {"YouTubeClips/-4wsuPCjDBc_5_15.avi": "", "YouTubeClips/vid1302.mp4": ""}
    data = read_msvd_qa(lay({"test_qa.json": entries, "youtube_mapping.txt": mapping, **videos}), "test")
    assert [item.id for item in data.items] == ["30", "31", "32"]
    assert [item.media and item.media.name for item in data.items] == ["-4wsuPCjDBc_5_15.avi", "vid1302.mp4", None]
    assert data.missing == ["YouTubeClips/JntMAcTlOF0_50_70"]
    assert sorted(data.files) == ["test_qa.json", "youtube_mapping.txt"]


def test_msvd_is_read_in_the_layout_of_its_authors(lay):
    entries = [{"id": 1, "video_id": 7, "question": "who ?", "answer": "man"}]
    data = read_msvd_qa(lay({"test_qa.json": entries, "video/vid7.avi": ""}), "test")
    assert [item.media_name for item in data.items] == ["video/vid7.avi"]


def test_questions_are_grouped_by_the_type_of_their_answer(lay, pair):
    assert [item.group for item in read_activitynet_qa(lay(pair), "test").items] == ["", "color"]


@pytest.mark.parametrize("kind", [9, -1])
def test_an_unknown_type_of_answer_is_named(lay, pair, kind):
    pair["test_a.json"][0]["type"] = kind
    with pytest.raises(UserError, match=f"the type of an answer is {kind}; it must be 0 to 8"):
        read_activitynet_qa(lay(pair), "test")


def test_msvd_is_read_as_a_pair_of_files_too(lay, pair):
    assert len(read_msvd_qa(lay(pair), "test").items) == 2


def test_files_and_fields_that_are_missing_are_named(lay, pair, tmp_path):
    with pytest.raises(UserError, match=r"val_qa\.json"):
        read_msvd_qa(lay(pair), "val")
    with pytest.raises(UserError, match="nowhere"):
        read_msvd_qa(tmp_path / "nowhere", "test")
    del pair["test_q.json"][1]["video_name"]
    with pytest.raises(UserError, match="entry 1 has no field 'video_name'; it has question_id, question"):
        read_activitynet_qa(lay(pair), "test")


def test_an_id_that_stands_twice_is_named(lay, pair):
    pair["test_q.json"][1]["question_id"] = "v_1_a"
    with pytest.raises(UserError, match="'v_1_a' occurs twice"):
        read_activitynet_qa(lay(pair), "test")


def test_broken_json_is_named(lay, pair):
    with pytest.raises(UserError, match=r"test_a\.json is no JSON"):
        read_activitynet_qa(lay({**pair, "test_a.json": "[1, "}), "test")


def test_empty_files_are_named(lay, pair):
    with pytest.raises(UserError, match=r"no item in test_q\.json"):
        read_activitynet_qa(lay({**pair, "test_q.json": []}), "test")
