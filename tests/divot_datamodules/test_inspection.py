import pytest
from PIL import Image

from divot_datamodules.inspection import find_shards, inspect_shards, write_contact_sheet
from divot_lightning.errors import UserError
from divot_lightning.testing.toy_shards import make_toy_shards


def test_good_shards_are_counted(video_shards, picture_file):
    folder = video_shards(shards=2, samples=3, extra=[("p.jpg", picture_file())])
    seen = []
    report = inspect_shards(find_shards(str(folder)), on_sample=lambda: seen.append(1))
    assert (report.shards, report.samples, len(seen)) == (2, 8, 8)
    assert report.suffixes == {"mp4": 6, "json": 6, "jpg": 2}
    assert report.resolutions == {"32x32": 6}
    assert report.rates == {"8": 6}
    assert report.durations == [2.0] * 6
    assert (report.captions, report.questions, report.defects) == (6, 6, [])
    assert report.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_defects_are_found_ahead_of_training(video_shards, numbered_file):
    bad = [("b.v1.mp4", b"rubbish"), ("short.mp4", numbered_file(9)), ("none.json", b"{}"), ("e.mp4", b"")]
    folder = video_shards(shards=1, extra=[*bad, ("t.mp4", numbered_file()), ("t.txt", b"\xff")])
    (folder / "zz.tar").write_bytes(b"rubbish" * 999)
    report = inspect_shards(find_shards(str(folder)))
    assert {(defect.key, defect.reason) for defect in report.defects} == {
        ("b.v1", "undecodable"),
        ("short", "too_short"),
        ("none", "missing_media"),
        ("e", "empty_media"),
        ("t", "not_utf8"),
        ("", "broken_shard"),
    }
    text = "\n".join(report.lines())
    assert "undecodable 1" in text
    assert f"too_short: {folder / '000.tar'} short" in text


def test_a_folder_of_splits_is_looked_through(tmp_path):
    make_toy_shards(tmp_path, train=4, validation=4, held_out=4)
    assert inspect_shards(find_shards(str(tmp_path))).samples == 12
    with pytest.raises(UserError, match="nowhere"):
        find_shards(str(tmp_path / "nowhere*"))


def test_the_contact_sheet_shows_clips(tmp_path, video_shards):
    report = inspect_shards(find_shards(str(video_shards())))
    write_contact_sheet(report, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size[0] > 700
        assert len(sheet.convert("L").getcolors()) > 1


def test_without_clips_there_is_no_contact_sheet(tmp_path, write_tar):
    report = inspect_shards([str(write_tar(tmp_path / "a.tar", [("k.json", b"{}")]))])
    with pytest.raises(UserError, match="no clip"):
        write_contact_sheet(report, tmp_path / "sheet.png")
