import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from divot_datamodules.decoding import clip_sampling
from divot_datamodules.decoding.clip_sampling import (
    ClipConfig,
    clip_times,
    decode_clip,
    decode_clips,
    image_clip,
    sample_clip_times,
)
from divot_datamodules.decoding.video import DecodeError, decode_frames
from divot_lightning.errors import UserError


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "avi", "gif"])
def test_a_two_second_clip_at_8_fps_is_taken_as_it_is(container, numbered_file, frame_numbers):
    clip = decode_clip(numbered_file(16, 8, container), ClipConfig())
    assert clip.video.shape == (16, 3, 32, 32)
    assert clip.video.dtype == np.uint8
    assert clip.is_deterministic
    assert frame_numbers(clip.video) == list(range(16))


@pytest.mark.parametrize("fps", [12, 25, 29.97])
def test_other_rates_are_sampled_by_time(fps, numbered_file, frame_numbers):
    data = numbered_file(100, fps)
    for seed in range(5):
        clip = decode_clip(data, ClipConfig(), np.random.default_rng(seed))
        start = np.random.default_rng(seed).random() * (100 / fps - 2)
        wanted = [int((start + index / 8) * fps + 1e-3) for index in range(16)]
        assert frame_numbers(clip.video) == wanted
        assert not clip.is_deterministic


def test_without_a_generator_the_clip_is_the_middle_one(numbered_file, frame_numbers):
    assert frame_numbers(decode_clip(numbered_file(32, 8), ClipConfig()).video) == list(range(8, 24))


def test_starts_are_spread_over_the_whole_video():
    rng = np.random.default_rng(0)
    starts = [sample_clip_times(10.0, 25.0, ClipConfig(), rng)[0][0] for _ in range(500)]
    assert 0 <= min(starts) < 0.1
    assert 7.9 < max(starts) <= 8.0


def test_a_video_shorter_than_a_clip_is_refused(numbered_file):
    with pytest.raises(DecodeError, match=r"too_short.*1\.88 s of 2\.00 s"):
        decode_clip(numbered_file(15, 8), ClipConfig())


def test_a_short_video_may_be_squeezed_as_long_as_it_has_the_frames(numbered_file, frame_numbers):
    settings = ClipConfig(short_videos="squeeze")
    assert frame_numbers(decode_clip(numbered_file(32, 32), settings).video) == list(range(0, 32, 2))
    assert frame_numbers(decode_clip(numbered_file(16, 32), settings).video) == list(range(16))
    with pytest.raises(DecodeError, match="too_short"):
        decode_clip(numbered_file(15, 32), settings)


def test_variable_rate_clips_repeat_what_is_shown_longer(variable_rate_file, frame_numbers):
    data = variable_rate_file([0, 500, 1000, 1800, 1900, 2000])
    numbers = frame_numbers(decode_clip(data, ClipConfig()).video)
    assert numbers == [0] * 4 + [1] * 4 + [2] * 7 + [3]


def test_a_picture_becomes_a_clip_that_stands_still(picture_file):
    clip = image_clip(picture_file(), ClipConfig(height=16, width=24))
    assert clip.video.shape == (16, 3, 16, 24)
    assert clip.is_deterministic
    assert (clip.video == clip.video[0]).all()


@given(st.floats(0.1, 120.0), st.integers(1, 20))
def test_clips_cover_a_video_in_order_and_never_leave_it(duration, max_clips):
    clip = ClipConfig()
    clips = clip_times(duration, clip, max_clips)
    assert 1 <= len(clips) <= max_clips
    times = [time for moments in clips for time in moments]
    assert times == sorted(times)
    assert all(len(moments) == clip.frames for moments in clips)
    assert times[-1] < duration + 0.5 / clip.fps
    if duration <= max_clips * clip.seconds:
        assert duration - times[-1] <= 1.5 / clip.fps + 1e-6  # covered to the end


def test_a_long_video_gives_the_start_of_each_of_twenty_segments():
    clips = clip_times(100.0, ClipConfig())
    assert [moments[0] for moments in clips] == [5.0 * index for index in range(20)]
    assert all(moments[1] - moments[0] == pytest.approx(0.125) for moments in clips)


def test_forty_seconds_are_twenty_clips_without_gaps():
    clips = clip_times(40.0, ClipConfig())
    assert [time for moments in clips for time in moments] == pytest.approx([i / 8 for i in range(320)])


@pytest.mark.parametrize(("count", "fps", "starts"), [(64, 8, [0, 16, 32, 48]), (128, 8, [0, 25, 51, 76, 102])])
def test_a_whole_video_gives_its_consecutive_clips_or_the_starts_of_equal_segments(
    count, fps, starts, numbered_file, frame_numbers
):
    clips = decode_clips(numbered_file(count, fps), ClipConfig(), np.random.default_rng(0), max_clips=5)
    assert clips.video.shape == (len(starts), 16, 3, 32, 32)
    assert clips.is_deterministic
    assert [frame_numbers(video) for video in clips.video] == [list(range(s, s + 16)) for s in starts]


def test_the_last_piece_of_a_whole_video_is_squeezed(numbered_file, frame_numbers):
    clips = decode_clips(numbered_file(24, 8), ClipConfig(), max_clips=20)
    assert [frame_numbers(video) for video in clips.video] == [list(range(16)), [16 + n // 2 for n in range(16)]]


def test_many_clips_are_decoded_in_one_pass_over_the_file(monkeypatch, numbered_file):
    calls = []
    monkeypatch.setattr(
        clip_sampling, "decode_frames", lambda *args, **kwargs: calls.append(1) or decode_frames(*args, **kwargs)
    )
    assert len(decode_clips(numbered_file(64, 8), ClipConfig(), max_clips=20).video) == 4
    assert calls == [1]


def test_a_whole_video_shorter_than_a_clip_follows_the_same_rule_as_one_clip(numbered_file, frame_numbers):
    with pytest.raises(DecodeError, match=r"too_short.*1\.00 s of 2\.00 s"):
        decode_clips(numbered_file(8, 8), ClipConfig(), max_clips=20)
    squeezed = decode_clips(numbered_file(16, 16), ClipConfig(short_videos="squeeze"), max_clips=20)
    assert [frame_numbers(video) for video in squeezed.video] == [list(range(16))]


@pytest.mark.parametrize("container", ["mp4", "webm", "gif"])
@pytest.mark.parametrize("max_clips", [1, 3])
def test_sparse_frames_are_bit_for_bit_those_of_the_dense_clip(container, max_clips, numbered_file):
    data = numbered_file(100, 24, container)
    dense, sparse = (
        decode_clips(data, ClipConfig(24, 24, sparse_frames=count), np.random.default_rng(3), max_clips=max_clips)
        for count in (None, 5)
    )
    assert sparse.video.shape[1] == 5
    assert np.array_equal(sparse.video, dense.video[:, [0, 4, 8, 12, 15]])


def test_sparse_pictures_have_as_many_frames(picture_file):
    assert image_clip(picture_file(), ClipConfig(16, 16, sparse_frames=5)).video.shape == (5, 3, 16, 16)


@pytest.mark.parametrize("count", [0, 17])
def test_more_sparse_frames_than_a_clip_has_are_refused(count):
    with pytest.raises(UserError, match=rf"sparse_frames is {count}; a clip has 16"):
        ClipConfig(sparse_frames=count)


def test_a_picture_takes_the_memory_of_one_frame(picture_file):
    assert image_clip(picture_file(), ClipConfig()).video.strides[0] == 0


def test_larger_sources_than_allowed_are_refused(numbered_file, picture_file):
    settings = ClipConfig(max_pixels=32 * 32 - 1)
    with pytest.raises(DecodeError, match=r"too_large: 32 x 32 pixels, more than 1023"):
        decode_clip(numbered_file(), settings)
    with pytest.raises(DecodeError, match=r"too_large: 30 x 40 pixels"):
        image_clip(picture_file(), settings)


@pytest.mark.parametrize("duration", [1.5, 7.0, 40.0, 95.0])
def test_equal_segments_are_always_as_many_as_allowed(duration):
    times = clip_times(duration, ClipConfig(cover="equal"), 20)
    assert len(times) == 20
    for index, moments in enumerate(times):
        start, end = index * duration / 20, (index + 1) * duration / 20
        step = min(1 / 8, duration / 20 / 16)  # never slower than 8 per second, never beyond the segment
        np.testing.assert_allclose(moments, [start + number * step for number in range(16)], atol=1e-9)
        assert moments[-1] < end


def test_random_starts_are_spread_over_their_segments_and_stay_inside():
    clip = ClipConfig(random_starts=True)
    starts = np.array([[c[0] for c in clip_times(100.0, clip, 20, np.random.default_rng(seed))] for seed in range(200)])
    offsets = starts - np.arange(20) * 5.0
    assert offsets.min() >= 0
    assert offsets.max() <= 3.0  # a clip of 2 s in a segment of 5 s
    assert abs(offsets.mean() - 1.5) < 0.05
    assert abs(offsets.std() - 3.0 / 12**0.5) < 0.05
    assert clip_times(100.0, clip, 20) == clip_times(100.0, ClipConfig(), 20)


def released_training_frames(num_frames, source_fps, num_clips, draw):
    """Independent reference: positions in source frames, before they are cut to whole numbers, by the released rule.

    Args:
        num_frames: Frames of the video.
        source_fps: Their rate.
        num_clips: Most clips.
        draw: Returns a number between its two arguments.
    """
    between = source_fps / 8  # source frames from one frame of a clip to the next
    if num_frames // between >= num_clips * 16:
        length, clips = num_frames // num_clips, []
        for clip in range(num_clips):
            own = between if length // between >= 16 else length / 16
            start = draw(clip * length, (clip + 1) * length - 16 * own)
            clips.append([start + own * frame for frame in range(16)])
        return clips
    start, clips = draw(0.0, between), []
    while start < num_frames:
        end = min(start + 16 * between, num_frames)
        clips.append([start + (end - start) / 16 * frame for frame in range(16)])
        start += 16 * between
    return clips


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("seconds", "fps", "max_clips"),
    [(100, 24, 20), (60, 30, 10), (2, 24, 20), (3, 25, 20), (7, 30, 20), (39, 24, 20), (1.5, 40, 20), (1.5, 40, 1)],
)
def test_random_starts_are_those_of_the_released_training(seconds, fps, max_clips, seed):
    clip = ClipConfig(random_starts=True, short_videos="squeeze")
    rng = np.random.default_rng(seed)
    expected = released_training_frames(
        round(seconds * fps), fps, max_clips, lambda low, high: low + (high - low) * rng.random()
    )
    if seconds * fps - expected[-1][0] < fps / 16:  # a rest of half a frame's time is no clip here
        expected = expected[:-1]
    if max_clips == 1:
        found = [sample_clip_times(seconds, fps, clip, np.random.default_rng(seed))[0]]
    else:
        found = clip_times(seconds, clip, max_clips, np.random.default_rng(seed))
    np.testing.assert_allclose(np.array(found) * fps, expected, atol=fps / 16)
    whole = [times for times in range(len(expected)) if expected[times][1] - expected[times][0] == fps / 8]
    np.testing.assert_allclose(np.array(found)[whole] * fps, np.array(expected)[whole], atol=1e-6)


@pytest.mark.parametrize("seconds", [1.5, 2, 7])
def test_consecutive_clips_start_up_to_an_eighth_of_a_second_later(seconds, numbered_file, frame_numbers):
    data, clip = numbered_file(round(seconds * 40), 40), ClipConfig(random_starts=True, short_videos="squeeze")
    firsts = []
    for seed in range(20):
        clips = decode_clips(data, clip, np.random.default_rng(seed), max_clips=20)
        assert not clips.is_deterministic
        firsts.append(frame_numbers(clips.video[0])[0])
    assert {0, 4} < set(firsts) <= {0, 1, 2, 3, 4}
    without = decode_clips(data, ClipConfig(short_videos="squeeze"), np.random.default_rng(0), max_clips=20)
    assert without.is_deterministic
    assert frame_numbers(without.video[0])[0] == 0
    assert decode_clips(data, clip, None, max_clips=20).is_deterministic, "without a generator nothing is random"


def test_clips_with_random_starts_are_decoded_again_in_each_pass(numbered_file, frame_numbers):
    data, clip = numbered_file(80, 8), ClipConfig(random_starts=True)
    first, second = (decode_clips(data, clip, np.random.default_rng(seed), max_clips=2) for seed in (0, 1))
    assert not first.is_deterministic
    assert frame_numbers(first.video[0]) != frame_numbers(second.video[0])
    assert decode_clips(data, ClipConfig(), np.random.default_rng(0), max_clips=2).is_deterministic


def test_small_and_narrow_sources_are_refused(numbered_file):
    data = numbered_file(16, 8)  # 32 x 32 pixels
    with pytest.raises(DecodeError, match="too_small: 32 x 32"):
        decode_clip(data, ClipConfig(min_side=33))
    decode_clip(data, ClipConfig(min_side=32, min_aspect=1.0, min_picture_side=200))
    with pytest.raises(UserError, match="min_aspect"):
        ClipConfig(min_aspect=2.0)


def test_pictures_have_a_smallest_side_of_their_own_and_a_narrowest_shape():
    buffer = io.BytesIO()
    Image.new("RGB", (100, 29)).save(buffer, "png")
    with pytest.raises(DecodeError, match="too_small: 29 x 100"):
        image_clip(buffer.getvalue(), ClipConfig(min_picture_side=30, min_aspect=0.2))
    with pytest.raises(DecodeError, match="too_narrow"):
        image_clip(buffer.getvalue(), ClipConfig(min_side=30, min_aspect=0.3))
