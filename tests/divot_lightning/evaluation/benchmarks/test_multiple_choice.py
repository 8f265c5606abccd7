"""Multiple-choice benchmarks are read from their published forms."""

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.multiple_choice import (
    MVBENCH_TASKS,
    read_egoschema,
    read_mvbench,
)


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


def test_egoschema_full_knows_the_public_answers_that_are_there_and_names_missing_videos(lay, egoschema):
    data = read_egoschema(lay(egoschema), "full")
    assert [item.choice for item in data.items] == [0, 4, None]
    assert data.missing == ["videos/u3"]


def test_egoschema_full_needs_no_answers(lay, egoschema):
    del egoschema["subset_answers.json"]
    assert [item.choice for item in read_egoschema(lay(egoschema), "full").items] == [None] * 3


def test_egoschema_videos_are_found_in_the_folder_of_their_archive_too(lay, egoschema):
    del egoschema["videos/u1.mp4"]
    data = read_egoschema(lay({**egoschema, "videos/videos/u1.mp4": ""}), "subset")
    assert [item.media_name for item in data.items] == ["videos/videos/u1.mp4", "videos/u2.mkv"]


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


def test_missing_fields_are_named(lay, egoschema):
    del egoschema["questions.json"][1]["option 3"]
    with pytest.raises(UserError, match=r"entry 1 of questions\.json has no field 'option 3'"):
        read_egoschema(lay(egoschema), "full")


def test_an_answer_out_of_range_is_named(lay, egoschema):
    with pytest.raises(UserError, match=r"answer to u2 in subset_answers\.json names option 5"):
        read_egoschema(lay({**egoschema, "subset_answers.json": {"u2": 5}}), "subset")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"start": 7.5, "end": 7.5}, "from 7.5 s to 7.5 s is empty"),
        ({"answer": "c"}, "the answer 'c' is none of its candidates"),
        ({"candidates": None}, "'candidates' is 'None'"),
        ({"video": 3}, "'video' is '3'"),
    ],
)
def test_one_invalid_entry_of_mvbench_is_one_unreadable_item(lay, mvbench, change, shown):
    good = mvbench["json/object_interaction.json"][0]
    mvbench["json/object_interaction.json"] = [good, {**good, **change}, good]
    data = read_mvbench(lay(mvbench), "test")
    assert len(data.items) == 22
    assert data.missing == []
    (invalid,) = [item for item in data.items if item.problem]
    assert (invalid.id, invalid.group, invalid.choice) == ("object_interaction/1", "object_interaction", -1)
    assert "entry 1 of json/object_interaction.json" in invalid.problem
    assert shown in invalid.problem
    # A group of its own, so that the other items are answered.
    assert [item.media_name for item in data.items].count(invalid.media_name) == 1


def test_videos_of_the_later_archive_of_mvbench_are_found(lay, mvbench):
    for name in [name for name in mvbench if name.startswith(("video/star", "video/clevrer"))]:
        mvbench[name.replace("video/", "video/data0613/", 1)] = mvbench.pop(name)
    data = read_mvbench(lay(mvbench), "test")
    assert data.missing == []
    moved = [item for item in data.items if item.media_name.startswith("video/data0613/")]
    assert len(moved) == 3 + 5
    assert {item.bounds for item in moved if item.group.startswith("action")} == {(1.5, 4.0)}


CUT = {
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "object_interaction": "star/Charades_segment",
    "action_localization": "sta/sta_video_segment",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "action_antonym": "ssv2_video_mp4",
    "fine_grained_pose": "nturgbd_convert",
}


@pytest.mark.parametrize("root", ["", "video/"])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_branch_of_mvbench_whose_videos_are_cut_already_is_read(lay, mvbench, root, bounded):
    files = {}
    for name, task in MVBENCH_TASKS.items():
        (entry,) = mvbench[f"json/{task.file}"]
        entry = entry if bounded else {key: value for key, value in entry.items() if key not in ("start", "end")}
        files[f"json/{task.file}"] = [{**entry, "video": f"{name}.mp4"}]
        files[f"{root}{CUT.get(name, task.media)}/{name}.mp4"] = ""
    data = read_mvbench(lay(files), "test")
    assert data.missing == []
    assert [(item.bounds, item.frame_rate, item.problem) for item in data.items] == [(None, None, "")] * 20
    assert all(item.media.is_file() for item in data.items)
