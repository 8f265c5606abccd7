"""Multiple-choice benchmarks are read from their published forms."""

import pytest

from divot_datamodules.benchmarks.multiple_choice import (
    MVBENCH_TASKS,
    read_egoschema,
    read_mvbench,
    read_perception_test,
)
from divot_lightning.errors import UserError


@pytest.fixture
def egoschema():
    questions = [
        {"q_uid": name, "question": f"why {name} ?", **{f"option {n}": f"{name}{n}" for n in range(5)}}
        for name in ("u1", "u2", "u3")
    ]
    files = {"questions.json": questions, "subset_answers.json": {"u2": 4, "u1": 0}}
    return {**files, "videos/u1.mp4": "", "videos/u2.mkv": "", "videos/notes.txt": ""}


def test_egoschema_subset_takes_the_questions_with_public_answers(lay, egoschema):
    data = read_egoschema(lay(egoschema), "subset")
    assert [(item.id, item.choice) for item in data.items] == [("u1", 0), ("u2", 4)]
    assert data.items[1].question == "why u2 ?"
    assert data.items[1].options == ("u20", "u21", "u22", "u23", "u24")
    assert data.items[1].media.name == "u2.mkv"
    assert sorted(data.files) == ["questions.json", "subset_answers.json"]
    assert data.missing == []


def test_egoschema_full_has_no_answers_and_names_missing_videos(lay, egoschema):
    data = read_egoschema(lay(egoschema), "full")
    assert [item.choice for item in data.items] == [None] * 3
    assert data.missing == ["videos/u3"]


@pytest.fixture
def perception():
    def question(number, **more):
        return {"id": number, "question": f"q{number}", "options": ["x", "y", "z"], "area": "memory", **more}

    annotations = {
        "video_1": {"mc_question": [question(0, answer_id=2), question(1, answer_id=0)], "metadata": {}},
        "video_2": {"mc_question": [question(0, answer_id=1)]},
    }
    hidden = {"video_9": {"mc_question": [question(5)]}}
    files = {"mc_question_valid.json": annotations, "all_test.json": hidden}
    return {**files, "videos/video_1.mp4": "", "videos/video_2.mp4": ""}


def test_perception_test_gives_each_question_of_each_video(lay, perception):
    data = read_perception_test(lay(perception), "valid")
    ids = [("video_1/0", 2), ("video_1/1", 0), ("video_2/0", 1)]
    assert [(item.id, item.choice) for item in data.items] == ids
    assert {item.group for item in data.items} == {"memory"}


def test_perception_test_without_answers_is_read_too(lay, perception):
    data = read_perception_test(lay(perception), "test")
    assert data.items[0].choice is None
    assert data.missing == ["videos/video_9"]


@pytest.fixture
def mvbench():
    """Every task with one entry."""
    files = {}
    for name, task in MVBENCH_TASKS.items():
        video = f"{name}_video" if task.frames else f"{name}.mp4"
        entry = {"video": video, "question": f"{name} ?", "candidates": ["a", "b", name], "answer": name}
        files[f"json/{task.file}"] = [{**entry, "start": 1.5, "end": 4} if task.bounded else entry]
        files[f"video/{task.media}/{video}/00001.jpg" if task.frames else f"video/{task.media}/{video}"] = ""
    return files


def test_mvbench_has_twenty_tasks_of_which_some_show_a_part(lay, mvbench):
    data = read_mvbench(lay(mvbench), "test")
    assert len(data.items) == len({item.group for item in data.items}) == 20
    assert all(item.choice == 2 for item in data.items)
    assert data.missing == []
    bounded = {item.group: item.bounds for item in data.items if item.bounds}
    assert bounded == dict.fromkeys(
        [
            "action_sequence",
            "action_prediction",
            "object_interaction",
            "action_localization",
            "episodic_reasoning",
        ],
        (1.5, 4.0),
    )
    (frames,) = [item for item in data.items if item.frame_rate]
    assert (frames.group, frames.frame_rate, frames.media.is_dir()) == ("episodic_reasoning", 3.0, True)


def test_one_task_of_mvbench_needs_only_its_files(lay, mvbench):
    names = ("json/state_change.json", "video/perception/videos/state_change.mp4")
    data = read_mvbench(lay({name: mvbench[name] for name in names}), "state_change")
    assert [item.id for item in data.items] == ["state_change/0"]
    assert data.items[0].media_name == "video/perception/videos/state_change.mp4"


def test_a_missing_file_is_named(lay, mvbench):
    del mvbench["json/moving_count.json"]
    with pytest.raises(UserError, match=r"has no json/moving_count\.json"):
        read_mvbench(lay(mvbench), "test")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"answer": "c"}, "the answer 'c' is none"),
        ({"candidates": "ab"}, "'candidates' is 'ab'; it must be a list"),
        ({"start": 4.0}, "from 4.0 s to 4.0 s is empty"),
        ({"start": True}, "'start' is 'True'"),
    ],
)
def test_wrong_fields_are_named_with_their_place(lay, mvbench, change, shown):
    mvbench["json/action_sequence.json"][0].update(change)
    with pytest.raises(UserError, match=f"entry 0 of json/action_sequence.json.*{shown}"):
        read_mvbench(lay(mvbench), "test")


def test_missing_fields_and_files_are_named(lay, egoschema, perception):
    del egoschema["questions.json"][1]["option 3"]
    with pytest.raises(UserError, match=r"entry 1 of questions\.json has no field 'option 3'"):
        read_egoschema(lay(egoschema), "full")
    with pytest.raises(UserError, match=r"mc_question_sample\.json nor all_sample\.json"):
        read_perception_test(lay(perception), "sample")


def test_an_answer_out_of_range_is_named(lay, egoschema):
    with pytest.raises(UserError, match=r"answer to u2 in subset_answers\.json names option 5"):
        read_egoschema(lay({**egoschema, "subset_answers.json": {"u2": 5}}), "subset")


def test_a_folder_without_videos_is_named(lay, perception):
    folder = lay({"mc_question_valid.json": perception["mc_question_valid.json"]})
    with pytest.raises(UserError, match="no folder videos nor valid"):
        read_perception_test(folder, "valid")
