"""EgoSchema and MVBench."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.choice import ChoiceBenchmark, ServedBenchmark, write_table
from divot_lightning.evaluation.benchmarks.files import BenchmarkFolder, field_of
from divot_lightning.parts.benchmarks import BenchmarkData, BenchmarkItem

NUM_EGOSCHEMA_OPTIONS = 5
TVQA_FRAME_RATE = 3.0


def read_egoschema(folder: str | Path, split: str) -> BenchmarkData:
    """Read EgoSchema (arXiv:2308.09126) from its unpacked repository and videos.

    `questions.json`: a list of {"q_uid", "question", "option 0" ... "option 4"}. `subset_answers.json`: the 500 public
    answers, {q_uid: index of the right option}. Videos `<q_uid>.mp4` in `videos`, `videos/videos`, `good_clips_git` or
    beside the files.

    Args:
        folder: The folder of these files.
        split: "subset" takes the questions with public answers; "full" takes all, with the public answers if the
            file exists. Only the benchmark's server computes the accuracy over all.
    """
    files = BenchmarkFolder(folder, "egoschema")
    questions = files.read_json("questions.json")
    answers = files.read_json("subset_answers.json") if split == "subset" or files.has("subset_answers.json") else {}
    videos = files.videos("videos", "videos/videos", "good_clips_git", ".")

    def items() -> Iterator[BenchmarkItem]:
        for number, entry in enumerate(questions):
            where = f"egoschema: entry {number} of questions.json"
            name = field_of(entry, "q_uid", str, where)
            if split == "subset" and name not in answers:
                continue
            options = tuple(field_of(entry, f"option {n}", str, where) for n in range(NUM_EGOSCHEMA_OPTIONS))
            media, media_name = videos.find(name)
            choice = int(answers[name]) if name in answers else None
            question = field_of(entry, "question", str, where)
            check_choice(choice, options, f"egoschema: the answer to {name} in subset_answers.json")
            yield BenchmarkItem(name, media, media_name, question, options, choice)

    return files.data(items())


class MVBenchTask(NamedTuple):
    """One of MVBench's tasks.

    Attributes:
        file: In `json`.
        media: Folder in `video`.
        bounded: Whether questions are about a part of each video.
        frames: Whether videos are folders of frames.
        cut: Folder of the hub's branch `video`, whose videos show only the part that a question is about.
    """

    file: str
    media: str
    bounded: bool = False
    frames: bool = False
    cut: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """Possible folders of the videos within the benchmark's folder; `data0613` is a later archive of some."""
        roots = ("video/", "video/data0613/", "", "data0613/")
        return tuple(f"{root}{name}" for name in (self.media, self.cut) if name for root in roots)

    def is_cut(self, media_name: str) -> bool:
        """Return whether a file is of the branch `video`, and so shows only the part that a question is about."""
        return bool(self.cut) and f"{self.cut}/" in media_name


_STAR_CUT = "star/Charades_segment"
_STAR, _CLEVRER, _PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"

MVBENCH_TASKS = {
    "action_sequence": MVBenchTask("action_sequence.json", _STAR, bounded=True, cut=_STAR_CUT),
    "action_prediction": MVBenchTask("action_prediction.json", _STAR, bounded=True, cut=_STAR_CUT),
    "action_antonym": MVBenchTask("action_antonym.json", "ssv2_video", cut="ssv2_video_mp4"),
    "fine_grained_action": MVBenchTask("fine_grained_action.json", "Moments_in_Time_Raw/videos"),
    "unexpected_action": MVBenchTask("unexpected_action.json", "FunQA_test/test"),
    "object_existence": MVBenchTask("object_existence.json", _CLEVRER),
    "object_interaction": MVBenchTask("object_interaction.json", _STAR, bounded=True, cut=_STAR_CUT),
    "object_shuffle": MVBenchTask("object_shuffle.json", _PERCEPTION),
    "moving_direction": MVBenchTask("moving_direction.json", _CLEVRER),
    "action_localization": MVBenchTask(
        "action_localization.json", "sta/sta_video", bounded=True, cut="sta/sta_video_segment"
    ),
    "scene_transition": MVBenchTask("scene_transition.json", "scene_qa/video"),
    "action_count": MVBenchTask("action_count.json", _PERCEPTION),
    "moving_count": MVBenchTask("moving_count.json", _CLEVRER),
    "moving_attribute": MVBenchTask("moving_attribute.json", _CLEVRER),
    "state_change": MVBenchTask("state_change.json", _PERCEPTION),
    "fine_grained_pose": MVBenchTask("fine_grained_pose.json", "nturgbd", cut="nturgbd_convert"),
    "character_order": MVBenchTask("character_order.json", _PERCEPTION),
    "egocentric_navigation": MVBenchTask("egocentric_navigation.json", "vlnqa"),
    "episodic_reasoning": MVBenchTask(
        "episodic_reasoning.json", "tvqa/frames_fps3_hq", bounded=True, frames=True, cut="tvqa/video_fps3_hq_segment"
    ),
    "counterfactual_inference": MVBenchTask("counterfactual_inference.json", _CLEVRER),
}
"""MVBench's 20 tasks (arXiv:2311.17005) with where their videos come from."""


def read_mvbench(folder: str | Path, split: str) -> BenchmarkData:
    """Read MVBench as it is published on the Hugging Face hub, its video archives unpacked.

    `json/<task>.json`: lists of {"video", "question", "candidates", "answer"}; also "start" and "end" in seconds where
    a question is about a part of the video. Videos in `video/<folder of MVBENCH_TASKS>/<video>` or
    `video/data0613/...`; those of Episodic Reasoning are folders of frames `00001.jpg` ... at three per second. The
    branch `video` of the hub, whose videos are cut already, is read as well.

    An invalid entry becomes an item with a `problem`: some entries of older downloads have an empty part. A file
    without any valid entry is refused.

    Args:
        folder: The folder of these files.
        split: "test" takes all tasks; the name of a task takes only that.
    """
    files = BenchmarkFolder(folder, "mvbench")
    chosen = MVBENCH_TASKS if split == "test" else {split: MVBENCH_TASKS[split]}
    return files.data(item for name, task in chosen.items() for item in _mvbench_items(files, name, task))


def _mvbench_items(files: BenchmarkFolder, name: str, task: MVBenchTask) -> list[BenchmarkItem]:
    file, items, problems = f"json/{task.file}", [], []
    for number, entry in enumerate(files.read_json(file)):
        try:
            items.append(_mvbench_item(files.folder, name, number, entry))
        except UserError as error:
            problems.append(str(error))
            # The video may be unknown, so the file takes its place, under a name that no other item has.
            invalid = BenchmarkItem(f"{name}/{number}", files.folder / file, f"{file}/{number}", choice=-1, group=name)
            items.append(replace(invalid, problem=str(error)))
    if problems and len(problems) == len(items):
        raise UserError(f"{problems[0]}\nNone of its {len(items)} entries is valid.")
    return items


def _mvbench_item(folder: Path, name: str, number: int, entry: Any) -> BenchmarkItem:
    task = MVBENCH_TASKS[name]
    where = f"mvbench: entry {number} of json/{task.file}"
    options = tuple(str(option) for option in field_of(entry, "candidates", list, where))
    answer = str(field_of(entry, "answer", (str, int), where))
    if answer not in options:
        raise UserError(f"{where}: the answer {answer!r} is none of its candidates: {', '.join(options)}"[:400])
    media, media_name = _mvbench_media(folder, task, field_of(entry, "video", str, where))
    is_whole = not task.is_cut(media_name)
    return BenchmarkItem(
        id=f"{name}/{number}",
        media=media,
        media_name=media_name,
        question=field_of(entry, "question", str, where),
        options=options,
        choice=options.index(answer),
        group=name,
        bounds=_bounds(entry, where) if task.bounded and is_whole else None,
        frame_rate=TVQA_FRAME_RATE if task.frames and is_whole else None,
    )


def _mvbench_media(folder: Path, task: MVBenchTask, video: str) -> tuple[Path | None, str]:
    names = [f"{inner}/{video}" for inner in task.folders]
    found = next((name for name in names if _is_media(folder / name, task.frames and not task.is_cut(name))), None)
    return (folder / found, found) if found else (None, names[0])


def _is_media(path: Path, is_frames: bool) -> bool:
    return path.is_dir() if is_frames else path.is_file()


def _bounds(entry: Any, where: str) -> tuple[float, float]:
    start, end = (float(field_of(entry, name, (int, float), where)) for name in ("start", "end"))
    if not 0.0 <= start < end:
        raise UserError(f"{where}: the part from {start} s to {end} s is empty")
    return start, end


def check_choice(choice: int | None, options: tuple[str, ...], where: str) -> None:
    """Check that the right option exists.

    Raises:
        UserError: It does not; the message names the entry.
    """
    if choice is not None and not 0 <= choice < len(options):
        raise UserError(f"{where} names option {choice} of {len(options)}, counted from 0")


class EgoSchema(ServedBenchmark):
    """EgoSchema (arXiv:2308.09126): five options about three minutes of first-person video."""

    splits: ClassVar[tuple[str, ...]] = ("subset", "full")

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the questions; see `read_egoschema`."""
        return read_egoschema(data, split)

    def write_choices(self, folder: Path, items: Sequence[BenchmarkItem], chosen: Sequence[int]) -> Path:
        """Write a table for Kaggle and an object for the authors' server."""
        return write_table(folder, items, chosen)


class MVBench(ChoiceBenchmark):
    """MVBench (arXiv:2311.17005): 20 tasks, each counting the same."""

    splits: ClassVar[tuple[str, ...]] = ("test", *MVBENCH_TASKS)

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the questions; see `read_mvbench`."""
        return read_mvbench(data, split)
