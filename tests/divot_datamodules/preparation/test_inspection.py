import json
import multiprocessing
import os
import signal

import pytest
from PIL import Image

from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.preparation.inspection import find_shards, inspect_source, open_for_inspection
from divot_datamodules.preparation.inspection_report import LISTED, ShardReport, write_contact_sheet, write_skipped
from divot_datamodules.shards.tar_source import TarSource
from divot_datamodules.tasks.mixture import TaskMixture
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SkippedSample
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.helpers.broken_shards import HangingDecoder, make_broken_shards


def inspect(folder, **settings):
    return inspect_source(open_for_inspection(str(folder)), **settings)


def test_good_shards_are_counted(video_shards, picture_file):
    folder = video_shards(shards=2, samples=3, extra=[("p.jpg", picture_file())])
    seen = []
    report = inspect(folder, on_sample=lambda: seen.append(1))
    assert (report.shards, report.samples, len(seen)) == (2, 8, 8)
    assert report.suffixes == {"mp4": 6, "json": 6, "jpg": 2}
    assert report.resolutions == {"32x32": 6}
    assert report.rates == {"8": 6}
    assert report.durations == [2.0] * 6
    assert (report.captions, report.questions, report.skipped) == (6, 6, [])
    assert report.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_everything_that_training_loses_is_found_ahead_of_it(tmp_path):
    made = make_broken_shards(tmp_path)
    report = inspect_source(
        TarSource(made.shards), HangingDecoder(made.clip), tasks=TaskMixture({"caption": 1.0}), workers=1, deadline=6.0
    )
    found = [(sample.reason, sample.shard, sample.key) for sample in report.skipped]
    assert set(found) == made.found_when("indexing", "decoding", "task", "deadline")
    assert len(found) == len(set(found))
    lost = sum(bool(key) for _, _, key in found)
    assert report.samples == sum(len(keys) for keys in made.good.values()) + lost
    assert not made.bomb.exists()


def test_workers_see_what_one_process_sees(tmp_path):
    made = make_broken_shards(tmp_path)
    alone, together = (inspect_source(TarSource(made.shards), SampleDecoder(made.clip), workers=n) for n in (0, 2))
    assert alone.skipped == together.skipped
    assert alone.lines() == together.lines()
    assert [caption for _, caption in alone.pictures] == [caption for _, caption in together.pictures]


class DyingDecoder(SampleDecoder):
    """Ends its process at two samples: each time at one, the first time only at the other."""

    deaths = multiprocessing.get_context("fork").Value("i", 0)

    def __call__(self, raw, rng):
        if raw.key == "s0n1":
            os.kill(os.getpid(), signal.SIGKILL)
        with self.deaths.get_lock():
            first = raw.key == "s1n0" and self.deaths.value == 0
            self.deaths.value += first
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(raw, rng)


def test_a_sample_is_tried_again_when_its_process_dies_as_in_training(video_shards):
    report = inspect(video_shards(shards=2, samples=3), decoder=DyingDecoder(), workers=1, deadline=120.0)
    assert DyingDecoder.deaths.value == 1
    assert [(sample.reason, sample.key) for sample in report.skipped] == [("worker_died", "s0n1")]
    assert "code -9, 2 times" in report.skipped[0].detail


def test_the_report_counts_by_reason_and_names_shard_and_key(tmp_path):
    report = ShardReport(
        shards=9, skipped=[SkippedSample("too_short", f"{n % 2}.tar", f"k{n}", "why") for n in range(15)]
    )
    report.skipped.append(SkippedSample("cut_in_header", "0.tar", "", ""))
    text = report.lines()
    assert "skipped     16 in 2 of 9 shards" in text
    assert f"  {'too_short':<22}{15:>7}" in text
    assert "too_short: 1.tar k3 (why)" in text
    assert f"too_short: and {15 - LISTED} more" in text
    assert "cut_in_header: 0.tar " in text
    write_skipped(report, tmp_path / "new" / "skipped.jsonl")
    lines = (tmp_path / "new" / "skipped.jsonl").read_text().splitlines()
    assert [SkippedSample(**json.loads(line)) for line in lines] == report.skipped


def test_a_jsonl_is_inspected_like_shards(tmp_path, numbered_file):
    (tmp_path / "a.mp4").write_bytes(numbered_file())
    lines = [{"video": "a.mp4", "caption": "c"}, {"video": "b.mp4"}]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = inspect(tmp_path / "l.jsonl")
    assert (report.samples, report.captions, report.resolutions) == (2, 1, {"32x32": 1})
    assert [(sample.reason, sample.key) for sample in report.skipped] == [("missing_media", "line2")]


def test_names_that_are_not_utf8_are_reported(tmp_path, write_tar):
    report = inspect(write_tar(tmp_path / "a.tar", [("caf\udce9.mp4", b"")]))
    assert report.skipped[0].key == "caf\udce9"
    assert "caf\\udce9" in "\n".join(report.lines()).encode("utf-8").decode()


def test_shards_of_which_none_can_be_read_are_reported(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"rubbish" * 999)
    report = inspect(tmp_path)
    assert [(sample.reason, report.samples) for sample in report.skipped] == [("not_a_tar", 0)]


def test_a_folder_of_splits_is_looked_through(tmp_path):
    make_toy_shards(tmp_path, train=4, validation=4, held_out=4)
    assert inspect(tmp_path).samples == 12
    with pytest.raises(UserError, match="nowhere"):
        find_shards(str(tmp_path / "nowhere*"))


def test_the_contact_sheet_shows_clips(tmp_path, video_shards):
    report = inspect(video_shards())
    write_contact_sheet(report, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size[0] > 700
        assert len(sheet.convert("L").getcolors()) > 1


def test_without_clips_there_is_no_contact_sheet(tmp_path, write_tar):
    report = inspect(write_tar(tmp_path / "a.tar", [("k.json", b"{}")]))
    with pytest.raises(UserError, match="no clip"):
        write_contact_sheet(report, tmp_path / "sheet.png")
