"""Readers of multiple-choice benchmarks: EgoSchema, Perception Test, MVBench."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from divot_datamodules.benchmarks.items import BenchmarkData, BenchmarkFolder, BenchmarkItem, field_of
from divot_lightning.errors import UserError

NUM_EGOSCHEMA_OPTIONS = 5
TVQA_FRAME_RATE = 3.0


def read_egoschema(folder: str | Path, split: str) -> BenchmarkData:
    """Reads EgoSchema (arXiv:2308.09126) as its repository and its videos are unpacked.

    `questions.json`: a list of {"q_uid", "question", "option 0" ... "option 4"}. `subset_answers.json`: the 500 public
    answers, {q_uid: place of the right option}. Videos `<q_uid>.mp4` in `videos`, `good_clips_git` or beside the files.

    Args:
        folder: Where these are.
        split: "subset" takes the questions with public answers; "full" takes all, whose accuracy only the benchmark's
            server tells.
    """
    files = BenchmarkFolder(folder, "egoschema")
    questions = files.read_json("questions.json")
    answers = files.read_json("subset_answers.json") if split == "subset" or files.has("subset_answers.json") else {}
    videos = files.videos("videos", "good_clips_git", ".")

    def items() -> Iterator[BenchmarkItem]:
        for number, entry in enumerate(questions):
            where = f"egoschema: entry {number} of questions.json"
            name = field_of(entry, "q_uid", str, where)
            if split == "subset" and name not in answers:
                continue
            options = tuple(field_of(entry, f"option {n}", str, where) for n in range(NUM_EGOSCHEMA_OPTIONS))
            media, media_name = videos.find(name)
            choice = int(answers[name]) if name in answers and split == "subset" else None
            question = field_of(entry, "question", str, where)
            _check_choice(choice, options, f"egoschema: the answer to {name} in subset_answers.json")
            yield BenchmarkItem(name, media, media_name, question, options, choice)

    return files.data(items())


def read_perception_test(folder: str | Path, split: str) -> BenchmarkData:
    """Reads the multiple-choice questions of the Perception Test (arXiv:2305.13786).

    `mc_question_<split>.json` or `all_<split>.json`: {video: {"mc_question": [{"id", "question", "options",
    "answer_id", "area"}], ...}}; the test split has no "answer_id". Videos `<video>.mp4` in `videos`.

    Args:
        folder: Where these are.
        split: "train", "valid", "test" or "sample".
    """
    files = BenchmarkFolder(folder, "perception_test")
    names = (f"mc_question_{split}.json", f"all_{split}.json")
    annotations = files.read_json(*names)
    name_read, videos = next(iter(files.files)), files.videos("videos", split)

    def items() -> Iterator[BenchmarkItem]:
        for video, entry in annotations.items():
            media, media_name = videos.find(video)
            for question in field_of(entry, "mc_question", list, f"perception_test: {video} in {name_read}"):
                where = f"perception_test: a question about {video} in {name_read}"
                options = tuple(str(option) for option in field_of(question, "options", list, where))
                choice = field_of(question, "answer_id", int, where) if "answer_id" in question else None
                _check_choice(choice, options, where)
                yield BenchmarkItem(
                    id=f"{video}/{field_of(question, 'id', int, where)}",
                    media=media,
                    media_name=media_name,
                    question=field_of(question, "question", str, where),
                    options=options,
                    choice=choice,
                    group=str(question.get("area", "")),
                )

    return files.data(items())


class MVBenchTask(NamedTuple):
    """One of MVBench's tasks.

    Attributes:
        file: In `json`.
        media: Folder in `video`.
        bounded: Whether a part of each video is meant.
        frames: Whether videos are folders of frames.
    """

    file: str
    media: str
    bounded: bool = False
    frames: bool = False


_STAR, _CLEVRER, _PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"

MVBENCH_TASKS = {
    "action_sequence": MVBenchTask("action_sequence.json", _STAR, bounded=True),
    "action_prediction": MVBenchTask("action_prediction.json", _STAR, bounded=True),
    "action_antonym": MVBenchTask("action_antonym.json", "ssv2_video"),
    "fine_grained_action": MVBenchTask("fine_grained_action.json", "Moments_in_Time_Raw/videos"),
    "unexpected_action": MVBenchTask("unexpected_action.json", "FunQA_test/test"),
    "object_existence": MVBenchTask("object_existence.json", _CLEVRER),
    "object_interaction": MVBenchTask("object_interaction.json", _STAR, bounded=True),
    "object_shuffle": MVBenchTask("object_shuffle.json", _PERCEPTION),
    "moving_direction": MVBenchTask("moving_direction.json", _CLEVRER),
    "action_localization": MVBenchTask("action_localization.json", "sta/sta_video", bounded=True),
    "scene_transition": MVBenchTask("scene_transition.json", "scene_qa/video"),
    "action_count": MVBenchTask("action_count.json", _PERCEPTION),
    "moving_count": MVBenchTask("moving_count.json", _CLEVRER),
    "moving_attribute": MVBenchTask("moving_attribute.json", _CLEVRER),
    "state_change": MVBenchTask("state_change.json", _PERCEPTION),
    "fine_grained_pose": MVBenchTask("fine_grained_pose.json", "nturgbd"),
    "character_order": MVBenchTask("character_order.json", _PERCEPTION),
    "egocentric_navigation": MVBenchTask("egocentric_navigation.json", "vlnqa"),
    "episodic_reasoning": MVBenchTask("episodic_reasoning.json", "tvqa/frames_fps3_hq", bounded=True, frames=True),
    "counterfactual_inference": MVBenchTask("counterfactual_inference.json", _CLEVRER),
}
"""MVBench's 20 tasks (arXiv:2311.17005) with where their videos come from."""


def read_mvbench(folder: str | Path, split: str) -> BenchmarkData:
    """Reads MVBench as it is published on the Hugging Face hub, its video archives unpacked.

    `json/<task>.json`: lists of {"video", "question", "candidates", "answer"}, where a part of the video is meant also
    "start" and "end" in seconds. Videos in `video/<folder of MVBENCH_TASKS>/<video>`; those of Episodic Reasoning are
    folders of frames `00001.jpg` ... at three per second.

    Args:
        folder: Where these are.
        split: "test" takes all tasks; the name of a task takes only that.
    """
    files = BenchmarkFolder(folder, "mvbench")
    chosen = MVBENCH_TASKS if split == "test" else {split: MVBENCH_TASKS[split]}
    return files.data(item for name, task in chosen.items() for item in _mvbench_items(files, name, task))


def _mvbench_items(files: BenchmarkFolder, name: str, task: MVBenchTask) -> Iterator[BenchmarkItem]:
    for number, entry in enumerate(files.read_json(f"json/{task.file}")):
        where = f"mvbench: entry {number} of json/{task.file}"
        media_name = f"video/{task.media}/{field_of(entry, 'video', str, where)}"
        path = files.folder / media_name
        there = path.is_dir() if task.frames else path.is_file()
        options = tuple(str(option) for option in field_of(entry, "candidates", list, where))
        answer = str(field_of(entry, "answer", (str, int), where))
        if answer not in options:
            raise UserError(f"{where}: the answer {answer!r} is none of its candidates: {', '.join(options)}"[:400])
        yield BenchmarkItem(
            id=f"{name}/{number}",
            media=path if there else None,
            media_name=media_name,
            question=field_of(entry, "question", str, where),
            options=options,
            choice=options.index(answer),
            group=name,
            bounds=_bounds(entry, where) if task.bounded else None,
            frame_rate=TVQA_FRAME_RATE if task.frames else None,
        )


def _bounds(entry: Any, where: str) -> tuple[float, float]:
    start, end = (float(field_of(entry, name, (int, float), where)) for name in ("start", "end"))
    if not 0.0 <= start < end:
        raise UserError(f"{where}: the part from {start} s to {end} s is empty")
    return start, end


def _check_choice(choice: int | None, options: tuple[str, ...], where: str) -> None:
    if choice is not None and not 0 <= choice < len(options):
        raise UserError(f"{where} names option {choice} of {len(options)}, counted from 0")
