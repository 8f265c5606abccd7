"""Open-ended questions: MSVD-QA and ActivityNet-QA."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from divot_lightning.errors import UserError
from divot_lightning.evaluation.answers.accuracy import OpenAnswerAccuracy
from divot_lightning.evaluation.benchmarks.files import BenchmarkFolder, MediaFolders, field_of
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData, BenchmarkItem
from divot_lightning.parts.metrics import BenchmarkMetric

_FOLDERS = ("videos", "all_test", "YouTubeClips", "video", ".")

QA_SPLITS = ("test", "val", "train")

ANSWER_TYPES = (
    "motion",
    "spatial_relation",
    "temporal_relation",
    "yes_no",
    "color",
    "object",
    "location",
    "number",
    "other",
)
"""ActivityNet-QA's types of answers by number, as its evaluation reports them; 3 to 8 together are its "free" type."""


def read_msvd_qa(folder: str | Path, split: str) -> BenchmarkData:
    """Read MSVD-QA (Xu et al. 2017) in either of its published forms.

    `<split>_qa.json`: a list of {"id", "video_id", "question", "answer"}, with `youtube_mapping.txt` (lines `<name>
    vid<video_id>`) that names the videos; or the pair of files of `read_activitynet_qa`. Videos by name or
    as `vid<video_id>` in `videos`, `YouTubeClips` or `video`.

    Args:
        folder: The folder of these files.
        split: "train", "val" or "test".
    """
    files = BenchmarkFolder(folder, "msvd_qa")
    if files.has(f"{split}_q.json"):
        return _read_pair(files, split)
    entries, videos = files.read_json(f"{split}_qa.json"), files.videos(*_FOLDERS)
    names = {words[1]: words[0] for line in files.read_lines("youtube_mapping.txt") if len(words := line.split()) == 2}

    def items() -> Iterator[BenchmarkItem]:
        for number, entry in enumerate(entries):
            where = f"msvd_qa: entry {number} of {split}_qa.json"
            video = f"vid{field_of(entry, 'video_id', int, where)}"
            media, media_name = videos.find(names.get(video, video), video)
            question, answer = (field_of(entry, name, str, where) for name in ("question", "answer"))
            identity = str(field_of(entry, "id", int, where))
            yield BenchmarkItem(identity, media, media_name, question, answer=answer)

    return files.data(items())


def read_activitynet_qa(folder: str | Path, split: str) -> BenchmarkData:
    """Read ActivityNet-QA (arXiv:1906.02467).

    `<split>_q.json`: a list of {"question_id", "video_name", "question"}; `<split>_a.json`: a list of {"question_id",
    "answer", "type"}, the type being an index into `ANSWER_TYPES`; each type has a score of its own. Videos
    `v_<video_name>` or `<video_name>` in `videos` or `all_test`.

    Args:
        folder: The folder of these files.
        split: "train", "val" or "test".
    """
    return _read_pair(BenchmarkFolder(folder, "activitynet_qa"), split)


def _read_pair(files: BenchmarkFolder, split: str) -> BenchmarkData:
    questions, answer_entries = files.read_json(f"{split}_q.json"), files.read_json(f"{split}_a.json")
    answers = _answers(answer_entries, f"{files.benchmark}: an entry of {split}_a.json")
    return files.data(_pair_items(questions, answers, files.videos(*_FOLDERS), f"{files.benchmark}: {split}_q.json"))


def _pair_items(
    questions: list[object], answers: dict[str, tuple[str, str]], videos: MediaFolders, where: str
) -> Iterator[BenchmarkItem]:
    for number, entry in enumerate(questions):
        entry_name = f"{where}, entry {number}"
        identity = str(field_of(entry, "question_id", (str, int), entry_name))
        video, question = (field_of(entry, name, str, entry_name) for name in ("video_name", "question"))
        if identity not in answers:
            raise UserError(f"{entry_name}: the question {identity!r} has no answer in the file of answers")
        media, media_name = videos.find(f"v_{video}", video)
        answer, kind = answers[identity]
        yield BenchmarkItem(identity, media, media_name, question, answer=answer, group=kind)


def _answers(entries: list[Any], where: str) -> dict[str, tuple[str, str]]:
    return {
        str(field_of(entry, "question_id", (str, int), where)): (
            field_of(entry, "answer", str, where),
            _kind(entry, where),
        )
        for entry in entries
    }


def _kind(entry: dict[str, Any], where: str) -> str:
    """Return the name of an answer's type, empty if it has none."""
    if "type" not in entry:
        return ""
    kind = field_of(entry, "type", int, where)
    if not 0 <= kind < len(ANSWER_TYPES):
        raise UserError(f"{where}: the type of an answer is {kind}; it must be 0 to {len(ANSWER_TYPES) - 1}")
    return ANSWER_TYPES[kind]


class OpenBenchmark(Benchmark):
    """Open questions: answers are compared by characters and by words, and perhaps by a judge."""

    main_scores: ClassVar[tuple[str, ...]] = ("judged", "normalised")
    is_open: ClassVar[bool] = True

    def make_metrics(self, items: Sequence[BenchmarkItem], device: str = "cpu") -> list[BenchmarkMetric]:
        """Build the accuracy, with the groups of the items."""
        return [OpenAnswerAccuracy(list(dict.fromkeys(item.group for item in items if item.group)))]


class MSVDQA(OpenBenchmark):
    """MSVD-QA (Xu et al. 2017)."""

    splits: ClassVar[tuple[str, ...]] = QA_SPLITS

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the questions; see `read_msvd_qa`."""
        return read_msvd_qa(data, split)


class ActivityNetQA(OpenBenchmark):
    """ActivityNet-QA (arXiv:1906.02467)."""

    splits: ClassVar[tuple[str, ...]] = QA_SPLITS

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the questions; see `read_activitynet_qa`."""
        return read_activitynet_qa(data, split)
