"""The conformance suites of sources and tasks find what is wrong with one."""

import json
import random
import time
from pathlib import Path

import pytest

from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sources import RawSample, SampleError, Source
from divot_lightning.parts.tasks import Task, pick_phrase
from divot_lightning.testing import SourceConformance, TaskConformance


class LinesSource(Source):
    """A file of captions, with a picture of a few bytes for each."""

    def __init__(self, path: str, *, index_folder: Path | None = None) -> None:
        self.path = path
        lines = Path(path).read_text().splitlines()
        self.counts: tuple[int, ...] = (2, len(lines) - 2)
        self.fingerprint = str(hash_of(lines))

    def shard_path(self, shard):
        return f"{self.path}#{shard}"

    def read(self, shard, sample):
        lines = Path(self.path).read_text().splitlines()
        if 2 * shard + sample >= len(lines):
            raise SampleError("shard_changed", "the line is gone")
        text = {"caption": lines[2 * shard + sample]}
        return RawSample(
            str(sample), self.shard_path(shard), sample, {"jpg": b"jpg", "json": json.dumps(text).encode()}
        )


def hash_of(lines):
    return sum((number + 1) * ord(letter) for number, line in enumerate(lines) for letter in line)


class GoodSource(SourceConformance):
    source = LinesSource

    def make_source(self, folder):
        return self.written(folder, "abcde")

    def make_other(self, folder):
        return self.written(folder, "abcdf")

    def make_damaged(self, folder):
        source = self.make_source(folder)
        (folder / "lines.txt").write_text("a\nb\nc")
        return source

    def written(self, folder, letters):
        (folder / "lines.txt").write_text("\n".join(letters))
        return self.source(str(folder / "lines.txt"))


class ListedCounts(LinesSource):
    def __init__(self, path: str, *, index_folder: Path | None = None) -> None:
        super().__init__(path)
        self.counts = list(self.counts)


class WrongKey(LinesSource):
    def key(self, shard, sample):
        return "always the same"


class UnknownSuffix(LinesSource):
    def read(self, shard, sample):
        raw = super().read(shard, sample)
        raw.members["exe"] = b""
        return raw


class RelativePath(LinesSource):
    def read(self, shard, sample):
        raw = super().read(shard, sample)
        raw.members["jpg"] = Path("a.jpg")
        return raw


class SharedPosition(LinesSource):
    """Keeps a file open, whose position forked workers share."""

    def __init__(self, path: str, *, index_folder: Path | None = None) -> None:
        super().__init__(path)
        Path(path).with_suffix(".bin").write_bytes(random.Random(0).randbytes(500_000))
        self.file = Path(path).with_suffix(".bin").open("rb", buffering=0)

    def read(self, shard, sample):
        raw = super().read(shard, sample)
        self.file.seek(100_000 * shard + 10_000 * sample)
        time.sleep(0.02)  # the other worker seeks, on a busy machine too
        raw.members["jpg"] = b"".join(self.file.read(10) for _ in range(200))
        return raw


class ReadsOn(LinesSource):
    """Gives what comes next, whatever is asked for."""

    def __init__(self, path: str, *, index_folder: Path | None = None) -> None:
        super().__init__(path)
        self.reads = 0

    def read(self, shard, sample):
        raw = super().read(shard, sample)
        self.reads += 1
        raw.members["txt"] = str(self.reads).encode()
        return raw


class FolderInFingerprint(LinesSource):
    def __init__(self, path: str, *, index_folder: Path | None = None) -> None:
        super().__init__(path)
        self.fingerprint = path


class NoFingerprint(LinesSource):
    def __init__(self, path: str, *, index_folder: Path | None = None) -> None:
        super().__init__(path)
        self.fingerprint = "always the same"


class NoIndexFolder(LinesSource):
    def __init__(self, path: str) -> None:
        super().__init__(path)


class AnyError(LinesSource):
    def read(self, shard, sample):
        try:
            return super().read(shard, sample)
        except SampleError as error:
            raise ValueError("no such line") from error


SOURCE_TESTS = [name for name in dir(SourceConformance) if name.startswith("test_")]


def failures(suite, names, folder=None):
    """The tests of a suite that fail."""
    failed = set()
    for name in names:
        arguments = []
        if folder is not None:
            (folder / name).mkdir()
            arguments = [folder / name]
        try:
            getattr(suite, name)(*arguments)
        except Exception:
            failed.add(name)
    return failed


def test_a_good_source_passes(tmp_path):
    assert failures(GoodSource(), SOURCE_TESTS, tmp_path) == set()


@pytest.mark.parametrize(
    ("wrong", "found_by"),
    [
        (ListedCounts, "test_counts_are_whole_numbers"),
        (WrongKey, "test_keys_are_unique_in_a_shard"),
        (WrongKey, "test_every_sample_can_be_read"),
        (UnknownSuffix, "test_members_are_what_the_decoder_reads"),
        (RelativePath, "test_members_are_what_the_decoder_reads"),
        (SharedPosition, "test_samples_are_the_same_in_forked_workers"),
        (ReadsOn, "test_samples_are_the_same_in_any_order"),
        (FolderInFingerprint, "test_equal_data_have_the_same_identity_wherever_they_are"),
        (NoFingerprint, "test_other_data_have_another_fingerprint"),
        (NoIndexFolder, "test_settings_open_the_source_again"),
        (AnyError, "test_an_unreadable_sample_is_a_sample_error"),
    ],
)
def test_what_is_wrong_with_a_source_is_found(tmp_path, wrong, found_by):
    suite = type("Suite", (GoodSource,), {"source": wrong})()
    assert failures(suite, [found_by], tmp_path) == {found_by}


class CountTask(Task):
    """Read the clips, count something."""

    prompts = ("How many ?", "Count them .")

    def segments(self, text, rng, *, num_clips=1, kind="video"):
        if "count" not in text:
            raise SampleError("missing_count", "no count")
        prompt = self.user_turn(pick_phrase(self.prompts, rng), Clips(num_clips, "read", kind))
        return [*prompt, Text(str(text["count"]), learn=True)]


class OneClipForgotten(CountTask):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        return super().segments(text, rng, num_clips=max(1, num_clips - 1), kind=kind)


class AlwaysVideo(CountTask):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        return super().segments(text, rng, num_clips=num_clips)


class LearnsNothing(CountTask):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        return super().segments(text, rng, num_clips=num_clips, kind=kind)[:-1]


class EmptyText(CountTask):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        return [*super().segments(text, rng, num_clips=num_clips, kind=kind), Text("", learn=False)]


class NoTemplate(CountTask):
    def user_turn(self, instruction, clips=None):
        return [clips, Text(instruction, learn=False)]


class OwnRandomness(CountTask):
    calls = 0

    def segments(self, text, rng, *, num_clips=1, kind="video"):
        type(self).calls += 1
        return [*super().segments(text, rng, num_clips=num_clips, kind=kind), Text(str(self.calls), learn=True)]


class ChangesTheSample(CountTask):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        found = super().segments(text, rng, num_clips=num_clips, kind=kind)
        text.clear()
        return found


class AnyTaskError(CountTask):
    def segments(self, text, rng, *, num_clips=1, kind="video"):
        return super().segments({"count": text["count"]}, rng, num_clips=num_clips, kind=kind)


class GoodTask(TaskConformance):
    task = CountTask
    num_clips = 3

    def make_task(self, template):
        return self.task(template)

    def make_text(self):
        return {"count": 4}


TASK_TESTS = [name for name in dir(TaskConformance) if name.startswith("test_")]


def test_a_good_task_passes():
    assert failures(GoodTask(), TASK_TESTS) == set()


@pytest.mark.parametrize(
    ("wrong", "found_by"),
    [
        (OneClipForgotten, "test_segments_are_texts_and_all_clips"),
        (OneClipForgotten, "test_a_mixture_takes_the_task"),
        (AlwaysVideo, "test_segments_are_texts_and_all_clips"),
        (LearnsNothing, "test_something_is_learned"),
        (EmptyText, "test_texts_hold_something"),
        (NoTemplate, "test_the_user_s_turn_stands_in_the_template"),
        (OwnRandomness, "test_random_choices_follow_the_generator"),
        (ChangesTheSample, "test_the_sample_stays_as_it_is"),
        (AnyTaskError, "test_a_sample_without_texts_is_a_missing_text"),
    ],
)
def test_what_is_wrong_with_a_task_is_found(wrong, found_by):
    suite = type("Suite", (GoodTask,), {"task": wrong})()
    assert failures(suite, [found_by]) == {found_by}
