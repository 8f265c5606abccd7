import numpy as np
import pytest

from divot_datamodules.clip_sampling import ClipSettings, decode_clip, image_clip, sample_clip_times
from divot_datamodules.decoding import DecodeError


@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "avi", "gif"])
def test_a_two_second_clip_at_8_fps_is_taken_as_it_is(container, numbered_file, frame_numbers):
    clip = decode_clip(numbered_file(16, 8, container), ClipSettings())
    assert clip.video.shape == (16, 3, 32, 32)
    assert clip.video.dtype == np.uint8
    assert clip.only_choice
    assert frame_numbers(clip.video) == list(range(16))


@pytest.mark.parametrize("fps", [12, 25, 29.97])
def test_other_rates_are_sampled_by_time(fps, numbered_file, frame_numbers):
    data = numbered_file(100, fps)
    for seed in range(5):
        clip = decode_clip(data, ClipSettings(), np.random.default_rng(seed))
        start = np.random.default_rng(seed).random() * (100 / fps - 2)
        wanted = [int((start + index / 8) * fps + 1e-3) for index in range(16)]
        assert frame_numbers(clip.video) == wanted
        assert not clip.only_choice


def test_without_a_generator_the_clip_is_the_middle_one(numbered_file, frame_numbers):
    assert frame_numbers(decode_clip(numbered_file(32, 8), ClipSettings()).video) == list(range(8, 24))


def test_starts_are_spread_over_the_whole_video():
    rng = np.random.default_rng(0)
    starts = [sample_clip_times(10.0, 25.0, ClipSettings(), rng)[0][0] for _ in range(500)]
    assert 0 <= min(starts) < 0.1
    assert 7.9 < max(starts) <= 8.0


def test_a_video_shorter_than_a_clip_is_refused(numbered_file):
    with pytest.raises(DecodeError, match=r"too_short.*1\.88 s of 2\.00 s"):
        decode_clip(numbered_file(15, 8), ClipSettings())


def test_a_short_video_may_be_squeezed_as_long_as_it_has_the_frames(numbered_file, frame_numbers):
    settings = ClipSettings(short_videos="squeeze")
    assert frame_numbers(decode_clip(numbered_file(32, 32), settings).video) == list(range(0, 32, 2))
    assert frame_numbers(decode_clip(numbered_file(16, 32), settings).video) == list(range(16))
    with pytest.raises(DecodeError, match="too_short"):
        decode_clip(numbered_file(15, 32), settings)


def test_variable_rate_clips_repeat_what_is_shown_longer(variable_rate_file, frame_numbers):
    data = variable_rate_file([0, 500, 1000, 1800, 1900, 2000])
    numbers = frame_numbers(decode_clip(data, ClipSettings()).video)
    assert numbers == [0] * 4 + [1] * 4 + [2] * 7 + [3]


def test_a_picture_becomes_a_clip_that_stands_still(picture_file):
    clip = image_clip(picture_file(), ClipSettings(height=16, width=24))
    assert clip.video.shape == (16, 3, 16, 24)
    assert clip.only_choice
    assert (clip.video == clip.video[0]).all()
