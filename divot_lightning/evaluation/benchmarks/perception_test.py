"""The Perception Test, whose videos are cut where their end would reveal the answer."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.choice import ServedBenchmark
from divot_lightning.evaluation.benchmarks.files import BenchmarkFolder, field_of
from divot_lightning.evaluation.benchmarks.multiple_choice import check_choice
from divot_lightning.parts.benchmarks import BenchmarkData, BenchmarkItem

CUT_SPLITS = ("valid", "train")
"""Splits whose videos are published uncut, with the frames at which to cut them; test videos are cut already."""

UNCUT = "_uncut"
"""Ending of the name of a split that shows whole videos nevertheless."""

NOT_CUT = -1


def read_perception_test(folder: str | Path, split: str) -> BenchmarkData:
    """Read the multiple-choice questions of the Perception Test (arXiv:2305.13786).

    `mc_question_<split>.json`, `all_<split>.json` or `<split>.json`: {video: {"mc_question": [{"id", "question",
    "options", "answer_id", "area"}], "metadata": {"frame_rate"}, ...}}; the test split has no "answer_id". Videos
    `<video>.mp4` in `videos`, `<split>/videos` or `<split>`.

    If the end of a video reveals the answer, `cut_frame_mapping_<split>.json`, {video: frame}, names the first frame
    that is not shown, -1 for none.

    Args:
        folder: The folder of these files.
        split: "train", "valid", "test" or "sample"; "valid_uncut" and "train_uncut" show whole videos, which makes the
            questions easier.

    Raises:
        UserError: A file is missing or wrong, the file of cuts included.
    """
    files, data_split = BenchmarkFolder(folder, "perception_test"), split.removesuffix(UNCUT)
    annotations = files.read_json(f"mc_question_{data_split}.json", f"all_{data_split}.json", f"{data_split}.json")
    name_read = next(iter(files.files))
    videos = files.videos("videos", f"{data_split}/videos", data_split)
    cuts = _read_cuts(files, split) if split in CUT_SPLITS else None

    def items() -> Iterator[BenchmarkItem]:
        for video, entry in annotations.items():
            media, media_name = videos.find(video)
            bounds = None if cuts is None else _bounds(video, entry, cuts, name_read)
            for question in field_of(entry, "mc_question", list, f"perception_test: {video} in {name_read}"):
                where = f"perception_test: a question about {video} in {name_read}"
                options = tuple(str(option) for option in field_of(question, "options", list, where))
                choice = field_of(question, "answer_id", int, where) if "answer_id" in question else None
                check_choice(choice, options, where)
                yield BenchmarkItem(
                    id=f"{video}/{field_of(question, 'id', int, where)}",
                    media=media,
                    media_name=media_name,
                    question=field_of(question, "question", str, where),
                    options=options,
                    choice=choice,
                    group=str(question.get("area", "")),
                    bounds=bounds,
                )

    return files.data(items())


def _read_cuts(files: BenchmarkFolder, split: str) -> Mapping[str, Any]:
    name = f"cut_frame_mapping_{split}.json"
    if not files.has(name):
        raise UserError(
            f"perception_test: {files.folder} has no {name}, which says where to cut the videos\n"
            "It is on the benchmark's page, beside the questions.\n"
            f"To show whole videos, which is easier and is noted in the protocol: --split {split}{UNCUT}"
        )
    return files.read_json(name)


def _bounds(video: str, entry: Any, cuts: Mapping[str, Any], name_read: str) -> tuple[float, float] | None:
    """Return the seconds of a video that are shown, None for all of it."""
    frame = field_of(cuts, video, int, "perception_test: the file of cuts")
    if frame == NOT_CUT:
        return None
    where = f"perception_test: {video} in {name_read}"
    rate = float(field_of(field_of(entry, "metadata", dict, where), "frame_rate", (int, float), f"{where}: metadata"))
    if rate <= 0.0 or frame < 0:
        raise UserError(f"{where} is to be cut at frame {frame} of {rate} per second; both must be positive")
    return 0.0, frame / rate


class PerceptionTest(ServedBenchmark):
    """The multiple-choice questions of the Perception Test (arXiv:2305.13786)."""

    splits: ClassVar[tuple[str, ...]] = (
        *("valid", "test", "train", "sample"),
        *(f"{split}{UNCUT}" for split in CUT_SPLITS),
    )

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the questions; see `read_perception_test`."""
        return read_perception_test(data, split)

    def write_choices(self, folder: Path, items: Sequence[BenchmarkItem], chosen: Sequence[int]) -> Path:
        """Write {video: [{"id", "answer_id", "answer"}]}."""
        videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for item, choice in zip(items, chosen, strict=True):
            video, _, number = item.id.rpartition("/")
            videos[video].append({"id": int(number), "answer_id": choice, "answer": item.options[choice]})
        path = folder / "submission.json"
        path.write_text(json.dumps(videos), encoding="utf-8")
        return path
