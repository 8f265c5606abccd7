import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.shards import jsonl_source
from divot_datamodules.shards.jsonl_source import JsonlSource
from divot_datamodules.shards.sources import TarSource, open_source
from divot_datamodules.shards.tar_source import MAX_TEXT_BYTES
from divot_datamodules.tasks.mixture import TaskMixture
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError


@pytest.fixture
def write_lines(tmp_path):
    """Write a jsonl of objects, or of lines as they are."""

    def write(lines, name="list.jsonl"):
        parts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / name).write_bytes(b"\n".join(parts) + b"\n")
        return tmp_path / name

    return write


@pytest.fixture
def media(tmp_path, numbered_file, picture_file):
    """Put a video and a picture into the folder."""
    (tmp_path / "a.mp4").write_bytes(numbered_file())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jpg").write_bytes(picture_file())
    return tmp_path


def reason(source, sample):
    with pytest.raises(SampleError) as caught:
        source.read(0, sample)
    return caught.value.reason


def test_lines_give_texts_and_paths(media, write_lines):
    source = JsonlSource([write_lines([{"video": "a.mp4", "caption": "c"}, b"  ", {"image": "sub/b.jpg", "id": 7}])])
    assert source.counts == (2,)
    assert [source.key(0, sample) for sample in (0, 1)] == ["line1", "line3"]
    first, second = source.read(0, 0), source.read(0, 1)
    assert first.members == {"mp4": media / "a.mp4", "json": b'{"caption": "c"}'}
    assert (second.key, second.shard, second.number) == ("line3", str(media / "list.jsonl"), 1)
    assert second.members == {"jpg": media / "sub" / "b.jpg", "json": b'{"id": 7}'}
    assert SampleDecoder()(first, None).video.shape == (1, 16, 3, 32, 32)
    assert SampleDecoder()(second, None).kind == "image"


def test_several_media_keep_their_order(media, write_lines):
    story = {"instruction": "tell", "texts": ["one", "two", "three"]}
    source = JsonlSource([write_lines([{"videos": ["a.mp4", "sub/b.jpg", "a.mp4"], "story": story}])])
    raw = source.read(0, 0)
    assert list(raw.members) == ["clip0.mp4", "clip1.jpg", "clip2.mp4", "json"]
    sample = SampleDecoder()(raw, None)
    assert sample.num_clips == 3
    assert len(TaskMixture({"story": 1.0}).segments_and_clips(sample, np.random.default_rng(0))[0]) == 7


def test_paths_start_from_the_root_or_are_absolute(media, write_lines, tmp_path):
    lines = [{"video": "../a.mp4"}, {"video": str(media / "a.mp4")}]
    source = JsonlSource([write_lines(lines)], media_root=media / "sub")
    assert [source.read(0, sample).members["mp4"] for sample in (0, 1)] == [media / "a.mp4"] * 2


def test_media_may_lie_below_a_root_that_is_a_url(media, write_lines):
    fsspec.filesystem("memory").pipe("/videos/a.mp4", (media / "a.mp4").read_bytes())
    lines = [{"video": "a.mp4"}, {"video": "memory://videos/a.mp4"}, {"video": "none.mp4"}]
    source = JsonlSource([write_lines(lines)], media_root="memory://videos")
    assert [source.read(0, sample).members["mp4"] for sample in (0, 1)] == [(media / "a.mp4").read_bytes()] * 2
    assert reason(source, 2) == "missing_media"


URLS = (
    "memory://elsewhere/a.mp4",
    "simplecache::memory://elsewhere/a.mp4",
    "http://169.254.169.254/latest/a.mp4",
    "file:///etc/a.mp4",
)


@pytest.mark.parametrize("root", [None, "memory://videos"])
def test_no_other_url_is_opened_unless_it_is_allowed(media, write_lines, root, monkeypatch):
    data = (media / "a.mp4").read_bytes()
    fsspec.filesystem("memory").pipe("/elsewhere/a.mp4", data)
    lines = write_lines([{"video": name} for name in (*URLS, "../elsewhere/a.mp4", "x::memory://elsewhere/a.mp4")])
    trusted = JsonlSource([lines], media_root=root, media_from="anywhere")
    assert [trusted.read(0, sample).members["mp4"] for sample in (0, 1)] == [data] * 2
    monkeypatch.setattr(jsonl_source, "read_whole", lambda *where: pytest.fail(f"opened {where}"))
    for media_from in ("root", "disk"):
        source = JsonlSource([lines], media_root=root, media_from=media_from)
        for sample in range(4):
            assert reason(source, sample) == "media_elsewhere"
        for sample in (4, 5):
            assert reason(source, sample) in ("media_elsewhere", "missing_media")


def test_only_what_lies_below_the_root_is_read_if_media_from_is_root(media, write_lines, tmp_path):
    (media / "sub" / "link.mp4").symlink_to(media / "a.mp4")
    (media / "sub" / "c.mp4").write_bytes((media / "a.mp4").read_bytes())
    names = ["c.mp4", str(media / "sub" / "c.mp4"), "../a.mp4", str(media / "a.mp4"), "link.mp4"]
    lines = write_lines([{"video": name} for name in names])
    source = JsonlSource([lines], media_root=media / "sub", media_from="root")
    assert [source.read(0, sample).members["mp4"] for sample in (0, 1)] == [media / "sub" / "c.mp4"] * 2
    assert [reason(source, sample) for sample in (2, 3, 4)] == ["media_elsewhere"] * 3
    default = JsonlSource([lines], media_root=media / "sub")
    assert all(default.read(0, sample).members for sample in range(5))


def test_where_media_may_come_from_is_checked(write_lines):
    with pytest.raises(UserError, match="media_from is 'web'; choose one of: root, disk, anywhere"):
        JsonlSource([write_lines([{"video": "a.mp4"}])], media_from="web")


def test_a_byte_order_mark_before_the_first_line_is_passed_over(media, write_lines):
    source = JsonlSource([write_lines([b'\xef\xbb\xbf{"video": "a.mp4", "caption": "c"}', {"video": "a.mp4"}])])
    assert source.read(0, 0).members["json"] == b'{"caption": "c"}'
    assert source.read(0, 1).key == "line2"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"caption": "no media"}, "missing_media"),
        ({"video": None, "image": ""}, "missing_media"),
        ({"video": "none.mp4"}, "missing_media"),
        ({"video": "sub"}, "undecodable"),
        ({"video": "concat:a.mp4|a.mp4"}, "missing_media"),
        ({"video": "concat:a.mp4"}, "missing_media"),
        ({"video": "weights.pkl"}, "undecodable"),
        ({"video": "pipe:touch bomb.mp4"}, "missing_media"),
        ({"image": "a.mp4"}, "undecodable"),
        ({"video": 7}, "bad_json"),
        ({"videos": ["a.mp4", {}]}, "bad_json"),
        ({"video": "a.mp4", "image": "sub/b.jpg"}, "bad_json"),
        ({"video": "empty.mp4"}, "empty_media"),
        ({"video": "a\0.mp4"}, "bad_path"),
        ({"videos": ["a.mp4", "/\0/a.mp4"]}, "bad_path"),
        ({"video": "x" * 5000 + ".mp4"}, "missing_media"),
        ({"video": "a.mp4", "caption": "cut \ud83d"}, "not_utf8"),
        ({"video": "fifo.mp4"}, "missing_media"),
        (b'{"video": "a.mp4"', "bad_json"),
        (b"[1]", "bad_json"),
        (b'{"video": "a.mp4", "caption": "\xff"}', "not_utf8"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_and_the_others_are_read(media, write_lines, line, expected):
    (media / "empty.mp4").touch()
    os.mkfifo(media / "fifo.mp4")
    (media / "weights.pkl").write_bytes(b"x")
    source = JsonlSource([write_lines([{"video": "a.mp4"}, line, {"video": "a.mp4"}])])
    assert source.counts == (3,)
    assert reason(source, 1) == expected
    assert source.read(0, 2).key == "line3"
    assert not (media / "bomb.mp4").exists()


def test_lines_have_a_limit(write_lines):
    source = JsonlSource([write_lines([{"caption": "x" * (MAX_TEXT_BYTES + 1)}])])
    assert reason(source, 0) == "too_large"


def test_a_file_that_changes_after_indexing_gives_no_foreign_line(media, write_lines):
    path = write_lines([{"video": "a.mp4", "caption": c} for c in "abc"])
    source = JsonlSource([path])
    write_lines([{"video": "a.mp4", "caption": c} for c in "axc"])
    assert source.read(0, 0).key == "line1"
    assert reason(source, 1) == "shard_changed"
    path.write_bytes(path.read_bytes()[:20])
    assert reason(source, 2) == "shard_changed"
    path.unlink()
    assert reason(source, 2) == "missing_shard"


def test_the_fingerprint_tells_other_lines_but_not_another_folder(tmp_path):
    for folder, text in (("a", b'{"x": 1}\n'), ("b", b'{"x": 1}\n'), ("c", b'{"x": 2}\n')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "l.jsonl").write_bytes(text)
    a, b, c = (JsonlSource([tmp_path / name / "l.jsonl"]).fingerprint for name in "abc")
    assert a == b
    assert a != c


def test_missing_and_empty_files_are_skipped_as_long_as_others_can_be_read(tmp_path, write_lines):
    good = write_lines([{"video": "a.mp4"}])
    (tmp_path / "empty.jsonl").touch()
    source = JsonlSource([good, tmp_path / "none.jsonl", tmp_path / "empty.jsonl"])
    assert source.counts == (1, 0, 0)
    assert [(d.reason, Path(d.shard).name) for d in source.skipped] == [
        ("missing_shard", "none.jsonl"),
        ("empty_shard", "empty.jsonl"),
    ]
    with pytest.raises(UserError, match=r"none\.jsonl cannot be used"):
        JsonlSource([tmp_path / "none.jsonl"])


def test_what_a_recipe_names_is_opened_as_what_it_is(tmp_path, write_lines, write_tar):
    file = write_lines([{"video": "a.mp4"}])
    tar = write_tar(tmp_path / "tars" / "a.tar", [("k.txt", b"x")])
    for named in (file, str(tmp_path), str(tmp_path / "*.jsonl"), [file]):
        source = open_source(named)
        assert isinstance(source, JsonlSource)
        assert source.shard_path(0) == str(file)
    for named in (tar, tmp_path / "tars", str(tmp_path / "tars" / "*.tar")):
        assert isinstance(open_source(named), TarSource)
    with pytest.raises(UserError, match="make them two sources"):
        open_source([str(file), str(tar)])
    with pytest.raises(UserError, match="media_root is 'videos'"):
        open_source(tar, media_root="videos")
    with pytest.raises(UserError, match=r"s3://bucket/l\.jsonl is a jsonl behind a URL"):
        open_source("s3://bucket/l.jsonl")
    with pytest.raises(UserError, match="names no shard"):
        open_source([])
