import collections
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from divot_datamodules.decoding import samples
from divot_datamodules.decoding.cached_features import read_features
from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import Sample, SampleDecoder, read_text, tokenizer_items
from divot_datamodules.loading.collate import collate
from divot_datamodules.tasks.mixture import TaskMixture, llm_items
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sources import RawSample, SampleError


def raw(members, key="k"):
    return RawSample(key, "a.tar", 0, members)


def decode(members):
    return SampleDecoder(ClipConfig(height=16, width=16))(raw(members), None)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi", "gif"])
def test_videos_of_every_container_become_one_clip(suffix, numbered_file):
    sample = decode({suffix: numbered_file(container=suffix), "json": b'{"caption": "x"}'})
    assert sample.video.shape == (1, 16, 3, 16, 16)
    assert sample.video.dtype == torch.uint8
    assert (sample.kind, sample.text, sample.num_clips) == ("video", {"caption": "x"}, 1)


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("png", "PNG")])
def test_pictures_become_a_clip_of_equal_frames(suffix, kind, picture_file):
    sample = decode({suffix: picture_file(kind=kind), "txt": b"a pink wall\n"})
    assert sample.kind == "image"
    assert sample.text == {"caption": "a pink wall"}
    assert torch.equal(sample.video, sample.video[:, :1].expand(1, 16, 3, 16, 16))


def test_numbered_clips_come_in_their_order(numbered_file, picture_file):
    members = {f"clip{number}.mp4": numbered_file(16 + number) for number in (10, 2, 0)}
    sample = decode(members)
    assert sample.num_clips == 3
    assert not sample.is_deterministic


def test_a_long_video_gives_as_many_clips_as_are_requested(numbered_file):
    data = numbered_file(96)
    whole = SampleDecoder(ClipConfig(16, 16), max_clips=4)(raw({"mp4": data}), np.random.default_rng(0))
    assert (whole.num_clips, whole.is_deterministic) == (4, True)
    one = SampleDecoder(ClipConfig(16, 16))(raw({"mp4": data}), np.random.default_rng(0))
    assert (one.num_clips, one.is_deterministic) == (1, False)


def test_the_videos_of_a_story_give_one_clip_each(numbered_file):
    members = {f"clip{number}.mp4": numbered_file(64) for number in range(3)}
    assert SampleDecoder(ClipConfig(16, 16), max_clips=4)(raw(members), None).num_clips == 3


def test_members_may_be_files(tmp_path, numbered_file, picture_file):
    (tmp_path / "v.mp4").write_bytes(numbered_file())
    (tmp_path / "p.jpg").write_bytes(picture_file())
    (tmp_path / "t.json").write_text('{"caption": "x"}')
    for suffix, name, data in (("mp4", "v.mp4", numbered_file()), ("jpg", "p.jpg", picture_file())):
        sample = decode({suffix: tmp_path / name, "json": tmp_path / "t.json"})
        assert torch.equal(sample.video, decode({suffix: data}).video)
        assert sample.text == {"caption": "x"}
    with pytest.raises(SampleError, match=r"missing_media.*gone\.mp4"):
        decode({"mp4": tmp_path / "gone.mp4"})
    with pytest.raises(SampleError, match=r"missing_media.*gone\.txt"):
        decode({"mp4": tmp_path / "v.mp4", "txt": tmp_path / "gone.txt"})


def test_the_frames_of_a_picture_are_counted_once(picture_file):
    assert decode({"jpg": picture_file()}).video.untyped_storage().nbytes() == 3 * 16 * 16


def test_features_that_name_another_tokenizer_are_refused():
    data = save({"tokens": torch.zeros(2, 3)}, {"tokenizer_sha256": "a" * 64})
    assert read_features(data).shape == read_features(data, "a" * 64).shape == (1, 2, 3)
    assert read_features(save({"tokens": torch.zeros(2, 3)}), "b" * 64).shape == (1, 2, 3)
    with pytest.raises(SampleError, match=r"foreign_features.*aaaa.*not bbbb"):
        SampleDecoder(tokenizer_sha256="b" * 64)(raw({"features.safetensors": data}), None)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": b"{}"}, "missing_media"),
        ({"mp4": b""}, "empty_media"),
        ({"mp4": b"rubbish"}, "undecodable"),
        ({"mp4": b"x", "json": b"{"}, "bad_json"),
        ({"mp4": b"x", "json": b"[1]"}, "bad_json"),
        ({"mp4": b"x", "json": b"[" * 100_000}, "bad_json"),
        ({"mp4": b"x", "json": b'"\xff"'}, "not_utf8"),
        ({"mp4": b"x", "txt": b"caf\xe9"}, "not_utf8"),
        ({"features.safetensors": b"rubbish"}, "bad_features"),
        ({"features.safetensors": save({"other": torch.zeros(2, 2)})}, "bad_features"),
        ({"features.safetensors": save({"tokens": torch.zeros(2)})}, "bad_features"),
        ({"features.safetensors": save({"tokens": torch.zeros(0, 2, 3)})}, "bad_features"),
        ({"features.safetensors": save({"tokens": torch.zeros(1, 0, 3)})}, "bad_features"),
        ({"features.safetensors": save({"tokens": torch.zeros(65, 2, 3)})}, "too_many_clips"),
        ({f"clip{number}.mp4": b"never opened" for number in range(6000)}, "too_many_clips"),
        ({"mp4": b"x", "json": b'{"caption": "a red \\ud83d square"}'}, "not_utf8"),
        ({"mp4": b"x", "json": b'{"deep": [{"er": "\\uDE00\\uD83D"}]}'}, "not_utf8"),
        ({"features.safetensors": save({"tokens": torch.zeros(2, 2).half()})}, "bad_features"),
    ],
)
def test_unusable_samples_have_a_reason(members, reason):
    with pytest.raises(SampleError) as caught:
        decode(members)
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_too_short_videos_have_a_reason(numbered_file):
    with pytest.raises(SampleError, match="too_short"):
        decode({"mp4": numbered_file(8)})


def test_escapes_of_whole_characters_are_text():
    assert read_text({"json": b'{"caption": "\\ud83d\\ude00 \\u00e9 \\\\ud83d"}'}) == {
        "caption": "\U0001f600 \u00e9 \\ud83d"
    }


def test_a_byte_order_mark_is_no_part_of_a_text():
    assert read_text({"json": b'\xef\xbb\xbf{"caption": "a"}'}) == {"caption": "a"}
    assert read_text({"txt": b"\xef\xbb\xbfa dog"}) == {"caption": "a dog"}


def test_the_clips_that_max_clips_allows_are_never_too_many():
    data = save({"tokens": torch.zeros(80, 2, 3)})
    for decoder in (SampleDecoder(max_clips=80), SampleDecoder(max_sample_clips=80)):
        assert decoder(raw({"features.safetensors": data}), None).num_clips == 80


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), ZeroDivisionError(), MemoryError(), OSError("x"), ValueError("y")]
)
def test_what_a_decoder_raises_for_odd_data_costs_the_sample(monkeypatch, error):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(samples, "decode_clips", fail)
    with pytest.raises(SampleError, match=f"unexpected_error.*{type(error).__name__}"):
        decode({"mp4": b"x"})


@pytest.mark.parametrize(
    "error", [TypeError("open() got an unexpected keyword"), AttributeError(), NameError(), KeyError()]
)
def test_a_bug_is_never_counted_as_a_skipped_sample(monkeypatch, error):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(samples, "decode_clips", fail)
    with pytest.raises(type(error)):
        decode({"mp4": b"x"})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["question", "answer", "from", "value", "texts", "instruction"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
odd_texts = st.dictionaries(
    st.sampled_from(["caption", "question", "answer", "questions", "conversations", "story"]), values
)


@settings(max_examples=300, deadline=None)
@given(
    odd_texts,
    st.sampled_from(["caption", "generate", "question", "conversation", "story"]),
    st.sampled_from(["pretraining", "instruction"]),
)
def test_odd_texts_are_a_missing_text_and_never_an_error_of_a_program(text, task, template):
    sample = Sample("k", text, features=torch.zeros(1, 2, 3))
    reason, segments = "", []
    try:
        segments = TaskMixture({task: 1.0}, template).segments_and_clips(sample, np.random.default_rng(0))[0]
    except SampleError as error:
        reason = error.reason
    assert bool(segments) != reason.startswith("missing_")
    assert all(isinstance(segment.text, str) for segment in segments if isinstance(segment, Text))


def test_json_goes_before_txt():
    assert read_text({"json": b'{"caption": "a"}', "txt": b"b"}) == {"caption": "a"}
    assert read_text({}) == {}


TEXT = {"caption": "a", "questions": [{"question": "q", "answer": "b"}]}


def task_of(segments):
    if isinstance(segments[0], Text):
        return "generate"
    return "question" if len(segments) == 3 else "caption"


def test_tasks_are_sampled_by_their_weights():
    mixture = TaskMixture({"caption": 1.0, "generate": 2.0, "question": 5.0})
    sample = Sample("k", TEXT, features=torch.zeros(1, 2, 3))
    counts = collections.Counter(
        task_of(mixture.segments_and_clips(sample, np.random.default_rng(n))[0]) for n in range(4000)
    )
    for task, share in {"caption": 1 / 8, "generate": 2 / 8, "question": 5 / 8}.items():
        assert counts[task] / 4000 == pytest.approx(share, abs=0.03)


def test_a_sample_takes_part_in_what_its_texts_allow():
    mixture = TaskMixture({"caption": 0.1, "question": 100.0})
    sample = Sample("k", {"caption": "a"}, features=torch.zeros(1, 2, 3))
    assert task_of(mixture.segments_and_clips(sample, np.random.default_rng(0))[0]) == "caption"


@pytest.mark.parametrize("task", ["caption", "question", "story"])
def test_samples_without_any_required_text_are_counted_by_the_first_task(task):
    mixture = TaskMixture({task: 0.001, "generate": 1.0, "conversation": 1000.0})
    for seed in range(5):
        with pytest.raises(SampleError, match=rf"missing_{task}.*generate: no caption; conversation: no question"):
            mixture.segments_and_clips(Sample("k", {}, features=torch.zeros(1, 2, 3)), np.random.default_rng(seed))[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"captions": 1.0}, "'captions' is not installed.*Did you mean 'caption'"),
        ({"caption": 0.0}, "0.0.*greater than 0"),
        ({}, "empty"),
    ],
)
def test_wrong_task_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        TaskMixture(weights)


def test_a_pixel_item_is_one_clip_which_the_generator_draws():
    video = torch.arange(3, dtype=torch.uint8)[:, None, None, None, None].expand(3, 16, 3, 4, 4)
    (only,) = tokenizer_items(Sample("k", {}, video=video[:1]), np.random.default_rng(0))
    assert (only["key"], only["video"].shape) == ("k", (16, 3, 4, 4))
    drawn = [tokenizer_items(Sample("k", {}, video=video), np.random.default_rng(seed)) for seed in range(40)]
    assert {(item["key"], int(item["video"][0, 0, 0, 0])) for (item,) in drawn} == {(f"k.clip{n}", n) for n in range(3)}
    with pytest.raises(UserError, match=r"'k'.*features"):
        tokenizer_items(Sample("k", {}, features=torch.zeros(1, 2, 3)))


@pytest.mark.parametrize("name", ["video", "features"])
def test_reading_takes_all_clips_and_generating_a_random_one(name):
    media = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    sample = Sample("k", TEXT, **{name: media})
    (read,) = llm_items(sample, np.random.default_rng(0), TaskMixture({"caption": 1.0}))
    assert read["segments"][0] == Clips(5, "read")
    assert torch.equal(read[name], media)
    drawn = [llm_items(sample, np.random.default_rng(n), TaskMixture({"generate": 1.0}))[0] for n in range(60)]
    assert all(item["segments"][-1] == Clips(1, "generate") and len(item[name]) == 1 for item in drawn)
    assert {float(item[name][0, 0, 0]) for item in drawn} == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_batches_hold_all_clips_in_order_of_appearance():
    items = [
        {"key": "a", "segments": [Clips(2, "read")], "features": torch.full((2, 3, 4), 1.0)},
        {"key": "b", "segments": [Clips(1, "read")], "features": torch.full((1, 3, 4), 2.0)},
    ]
    batch = collate(items)
    assert batch["key"] == ["a", "b"]
    assert batch["segments"] == [[Clips(2, "read")], [Clips(1, "read")]]
    assert batch["features"][:, 0, 0].tolist() == [1.0, 1.0, 2.0]
    videos = [{"key": key, "video": torch.zeros(16, 3, 4, 4, dtype=torch.uint8)} for key in "ab"]
    assert collate(videos)["video"].shape == (2, 16, 3, 4, 4)


def test_clips_of_other_shapes_are_named_where_no_stage_says_which_are_right():
    items = [{"key": key, "segments": [], "features": torch.zeros(1, 3, width)} for key, width in (("a", 4), ("b", 5))]
    with pytest.raises(UserError, match=r"\(3, 4\) \(sample 'a'\) and \(3, 5\) \('b'\)"):
        collate(items)


def test_features_and_videos_are_not_mixed():
    items = [
        {"key": "a", "segments": [], "features": torch.zeros(1, 3, 4)},
        {"key": "b", "segments": [], "video": torch.zeros(1, 16, 3, 4, 4)},
    ]
    with pytest.raises(UserError, match="mix"):
        collate(items)


def test_json_of_any_depth_survives():
    text = {"caption": "x", "attributes": {"colour": "red"}, "start": [1.5, 2]}
    assert read_text({"json": json.dumps(text).encode()}) == text
