import io
import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip
from divot_datamodules.decoding.video import decode_frames, probe
from divot_datamodules.preparation.media_items import safe_key
from divot_datamodules.preparation.packing import PackConfig, pack
from divot_datamodules.shards.sources import read_all
from divot_lightning.errors import UserError


def packed(folder):
    return {raw.key: raw.members for path in sorted(folder.glob("*.tar")) for raw in read_all(str(path))}


@pytest.fixture
def media_folder(tmp_path, numbered_file, picture_file):
    folder = tmp_path / "media"
    (folder / "cats").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(numbered_file(40))
    (folder / "a.txt").write_text("the first")
    (folder / "cats" / "b.v1.webm").write_bytes(numbered_file(16, container="webm"))
    (folder / "cats" / "b.v1.json").write_text('{"caption": "a cat", "question": "who ?", "answer": "a cat"}')
    (folder / "c.jpg").write_bytes(picture_file())
    (folder / "notes.md").write_text("no media")
    return folder


def test_a_folder_is_packed_with_its_texts_and_its_bytes(media_folder, tmp_path):
    report = pack(media_folder, tmp_path / "out", PackConfig())
    found = packed(tmp_path / "out")
    assert set(found) == {"a", "cats/b_v1", "c"}
    assert found["a"]["mp4"] == (media_folder / "a.mp4").read_bytes()
    assert json.loads(found["a"]["json"]) == {"caption": "the first"}
    assert json.loads(found["cats/b_v1"]["json"])["question"] == "who ?"
    assert set(found["c"]) == {"jpg"}
    assert (report.samples, report.with_text, report.shards, report.skipped) == (3, 2, 1, [])


def test_a_jsonl_is_packed_with_its_fields(media_folder, tmp_path):
    lines = [
        {"video": "a.mp4", "caption": "one", "question": "q", "answer": "a"},
        {"video": "a.mp4", "caption": "two"},
        {"image": "c.jpg", "caption": "three"},
    ]
    (media_folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    pack(media_folder / "list.jsonl", tmp_path / "out", PackConfig(samples_per_shard=2))
    found = packed(tmp_path / "out")
    assert {key: json.loads(members["json"])["caption"] for key, members in found.items()} == {
        "a": "one",
        "a_1": "two",
        "c": "three",
    }
    assert json.loads(found["a"]["json"]) == {"caption": "one", "question": "q", "answer": "a"}
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2


def test_long_videos_are_cut_into_pieces_that_are_clips(tmp_path, numbered_file, frame_numbers):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "long.mp4").write_bytes(numbered_file(120, 25))
    pack(tmp_path / "in", tmp_path / "out", PackConfig(clip_seconds=2, size=16))
    found = packed(tmp_path / "out")
    assert sorted(found) == ["long_0000", "long_0001"]
    for number, members in enumerate(found.values()):
        clip = decode_clip(members["mp4"], ClipConfig(height=16, width=16))
        assert clip.is_deterministic
        assert frame_numbers(clip.video) == [int((2 * number + index / 8) * 25 + 1e-3) for index in range(16)]


def test_pieces_keep_the_aspect_with_even_sides(tmp_path, numbered_video):
    from divot_datamodules.decoding.video_writing import write_video

    write_video(tmp_path / "in" / "wide.mp4", numbered_video(16, 32)[:, :, :18], 8)
    pack(tmp_path / "in", tmp_path / "out", PackConfig(clip_seconds=2, size=32))
    info = probe(packed(tmp_path / "out")["wide_0000"]["mp4"])
    assert (info.height, info.width) == (32, 56)


def test_pieces_are_made_smaller_by_the_filter_that_is_asked_for(tmp_path):
    from divot_datamodules.decoding.video_writing import encode_video, write_video

    noise = np.random.default_rng(0).integers(0, 256, (16, 3, 64, 64), dtype=np.uint8)
    video = write_video(tmp_path / "in" / "noise.mp4", noise, 8)
    full = decode_frames(video, [index / 8 for index in range(16)]).transpose(0, 2, 3, 1)
    small = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)) for one in full])
    pack(tmp_path / "in", tmp_path / "out", PackConfig(clip_seconds=2, size=32, resize="pil_bilinear"))
    assert packed(tmp_path / "out")["noise_0000"]["mp4"] == encode_video(small.transpose(0, 3, 1, 2), 8)
    with pytest.raises(UserError, match="resize is 'pil_bilinear', not None"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig(clip_seconds=2, size=32))
    with pytest.raises(UserError, match="nothing is resized"):
        PackConfig(clip_seconds=2, resize="pil_bilinear")


def test_what_cannot_be_packed_is_reported_and_left_out(media_folder, tmp_path, numbered_file):
    (media_folder / "bad.mp4").write_bytes(b"rubbish")
    (media_folder / "odd.mp4").write_bytes(numbered_file())
    (media_folder / "odd.json").write_text("{")
    report = pack(media_folder, tmp_path / "out", PackConfig())
    assert {sample.key: sample.reason for sample in report.skipped} == {"bad": "undecodable", "odd": "bad_json"}
    assert all("media" in sample.shard for sample in report.skipped)
    assert set(packed(tmp_path / "out")) == {"a", "cats/b_v1", "c"}


@pytest.fixture
def damaged_file(tmp_path, coded_file):
    """A video whose first frames are good."""
    data = bytearray(coded_file("libx264", "mp4", {"crf": "1", "g": "8", "bf": "0"}))
    with av.open(io.BytesIO(data)) as container:
        packet = max(list(container.demux(video=0))[20:30], key=lambda packet: packet.size)
        offset, size = packet.pos, packet.size
    data[offset + 20 : offset + size - 20] = bytes(255 - byte for byte in data[offset + 20 : offset + size - 20])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "b.mp4").write_bytes(data)
    (tmp_path / "damaged" / "a.mp4").write_bytes(coded_file("libx264", "mp4"))
    return tmp_path / "damaged"


def test_nothing_that_is_broken_anywhere_is_packed(damaged_file, tmp_path):
    report = pack(damaged_file, tmp_path / "out", PackConfig())
    assert [(sample.key, sample.reason) for sample in report.skipped] == [("b", "corrupt")]
    assert set(packed(tmp_path / "out")) == {"a"}


def test_a_look_at_the_first_frame_alone_misses_later_damage(damaged_file, tmp_path):
    assert pack(damaged_file, tmp_path / "out", PackConfig(check="first")).samples == 2


def test_a_file_without_a_decoder_does_not_stop_the_others(media_folder, tmp_path, coded_file):
    (media_folder / "unknown.mp4").write_bytes(coded_file("libx264", "mp4").replace(b"avc1", b"zzzz"))
    (media_folder / "drawing.png").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    for name, settings in (("whole", PackConfig()), ("pieces", PackConfig(clip_seconds=2))):
        report = pack(media_folder, tmp_path / name, settings)
        assert {sample.key: sample.reason for sample in report.skipped} == {
            "unknown": "undecodable",
            "drawing": "undecodable",
        }


def test_pieces_of_a_turned_video_with_wide_pixels_stand_upright(tmp_path, coded_file, frame_numbers):
    data = coded_file("libx264", "mp4", {"crf": "4"}, count=60, width=32, pixel_aspect=Fraction(2))
    offset = data.index(b"tkhd") + 44
    clockwise = struct.pack(">5i", 0, 1 << 16, 0, -(1 << 16), 0)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(data[:offset] + clockwise + data[offset + 20 :])
    pack(tmp_path / "in", tmp_path / "out", PackConfig(clip_seconds=2))
    piece = decode_frames(packed(tmp_path / "out")["a_0000"]["mp4"], [1.0])
    assert piece.shape == (1, 3, 64, 64)
    assert frame_numbers(np.rot90(piece, 1, (2, 3))) == [25]  # the columns with the number have become rows


def test_lines_that_cannot_be_packed_are_reported_by_number(media_folder, tmp_path):
    lines = ['{"video": "a.mp4"}', "{", '{"caption": "x"}', '{"video": "nowhere.mp4"}', '{"video": "notes.md"}']
    (media_folder / "list.jsonl").write_text("\n".join(lines))
    report = pack(media_folder / "list.jsonl", tmp_path / "out", PackConfig())
    assert {sample.key: sample.reason for sample in report.skipped} == {
        "line2": "bad_json",
        "line3": "missing_media",
        "nowhere": "missing_media",
        "notes": "undecodable",
    }


def test_a_video_shorter_than_a_piece_is_left_out(tmp_path, numbered_file):
    for name, frames in (("short", 9), ("long", 16)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.mp4").write_bytes(numbered_file(frames))
    report = pack(tmp_path / "in", tmp_path / "out", PackConfig(clip_seconds=2))
    assert [(sample.key, sample.reason) for sample in report.skipped] == [("short", "too_short")]


def test_a_second_call_does_nothing_and_a_changed_input_is_refused(media_folder, tmp_path):
    pack(media_folder, tmp_path / "out", PackConfig())
    again = pack(media_folder, tmp_path / "out", PackConfig())
    assert again.already_there
    assert (again.samples, again.with_text) == (3, 2)
    with pytest.raises(UserError, match="samples_per_shard is 256, not 7"):
        pack(media_folder, tmp_path / "out", PackConfig(samples_per_shard=7))
    (media_folder / "a.txt").write_text("another text")
    with pytest.raises(UserError, match="source is"):
        pack(media_folder, tmp_path / "out", PackConfig())


def test_an_interrupted_call_starts_again(media_folder, tmp_path, monkeypatch):
    from divot_datamodules.preparation import packing

    real = packing._media_samples

    def stop_at_c(source, settings):
        if source.key == "cats/b_v1":
            raise KeyboardInterrupt
        return real(source, settings)

    monkeypatch.setattr(packing, "_media_samples", stop_at_c)
    with pytest.raises(KeyboardInterrupt):
        pack(media_folder, tmp_path / "out", PackConfig(samples_per_shard=1))
    monkeypatch.setattr(packing, "_media_samples", real)
    pack(media_folder, tmp_path / "out", PackConfig(samples_per_shard=1))
    assert set(packed(tmp_path / "out")) == {"a", "cats/b_v1", "c"}


@pytest.mark.parametrize("name", ["nowhere", "empty", "list.csv"])
def test_nothing_to_pack_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("")
    with pytest.raises(UserError, match=name):
        pack(tmp_path / name, tmp_path / "out", PackConfig())
    assert not (tmp_path / "out").exists()


def test_nothing_packable_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.mp4").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="none of 1 files can be packed: undecodable 1"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig())
    assert not list((tmp_path / "out").glob("*.tar"))


def test_skipped_files_of_a_call_that_failed_are_forgotten(media_folder, tmp_path):
    good = media_folder / "a.mp4"
    only = tmp_path / "in"
    only.mkdir()
    (only / "a.mp4").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="none of 1"):
        pack(only, tmp_path / "out", PackConfig())
    (only / "a.mp4").write_bytes(good.read_bytes())
    assert pack(only, tmp_path / "out", PackConfig()).skipped == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 64}, "clip_seconds"),
        ({"clip_seconds": 0.01}, r"0\.01"),
        ({"samples_per_shard": 0}, "at least 1"),
        ({"check": "some"}, "all, first"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PackConfig(**settings)


def test_keys_have_no_dots():
    assert [safe_key(name) for name in ("a.b.c", "x/y z", "...", "\u043a\u043b\u044e\u0447")] == [
        "a_b_c",
        "x/y_z",
        "sample",
        "\u043a\u043b\u044e\u0447",
    ]


def test_the_videos_of_a_story_are_packed_in_their_order(tmp_path, numbered_file, picture_file):
    for name, data in (("a.mp4", numbered_file(16)), ("b.mkv", numbered_file(20, container="mkv"))):
        (tmp_path / name).write_bytes(data)
    story = {"instruction": "tell", "texts": ["one", "two"]}
    lines = [
        {"videos": ["b.mkv", "a.mp4"], "story": story},
        {"videos": ["b.mkv", "gone.mp4"]},
        {"videos": ["a.mp4"], "caption": "only one"},
        {"videos": ["a.mp4"], "video": "a.mp4"},
        {"videos": [3]},
        {"videos": []},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = pack(tmp_path / "list.jsonl", tmp_path / "out", PackConfig(clip_seconds=1.0))
    first, *rest = read_all(str(tmp_path / "out" / "shard-000000.tar"))
    assert (first.key, set(first.members)) == ("b", {"clip0.mkv", "clip1.mp4", "json"})
    assert first.members["clip1.mp4"] == numbered_file(16)
    assert json.loads(first.members["json"]) == {"story": story}
    assert [raw.key for raw in rest] == ["a_0000", "a_0001"]
    assert sorted((sample.reason, sample.key) for sample in report.skipped) == [
        ("bad_json", "line4"),
        ("bad_json", "line5"),
        ("missing_media", "b_1"),
        ("missing_media", "line6"),
    ]
