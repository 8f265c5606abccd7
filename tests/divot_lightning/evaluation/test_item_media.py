"""The clips of an item show the part that is meant, of a video and of a folder of frames alike."""

import numpy as np
import pytest
from PIL import Image

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.video import DecodeError
from divot_lightning.evaluation.item_media import read_item
from divot_lightning.parts.benchmarks import BenchmarkItem

CLIP = ClipConfig(short_videos="squeeze")


def frame_numbers(video):
    """Which frames are shown, by their grey level."""
    return [[round((frame.mean() - 10) / 7) for frame in clip] for clip in video.astype(float)]


def test_a_whole_video_is_covered_by_clips(video_bytes):
    video = read_item(BenchmarkItem("1", video_bytes(32), "v"), CLIP, 20)
    assert frame_numbers(video) == [list(range(16)), list(range(16, 32))]


def test_only_the_part_between_the_bounds_is_shown(video_bytes):
    video = read_item(BenchmarkItem("1", video_bytes(32), "v", bounds=(1.0, 3.0)), CLIP, 20)
    assert frame_numbers(video) == [list(range(8, 24))]


@pytest.mark.parametrize("frame", [1, 7, 8, 13, 31])
def test_no_frame_from_the_cut_on_is_shown(video_bytes, frame):
    video = read_item(BenchmarkItem("1", video_bytes(32), "v", bounds=(0.0, frame / 8)), CLIP, 20)
    assert max(max(clip) for clip in frame_numbers(video)) == frame - 1


def test_an_invalid_item_is_an_error_that_names_the_problem(video_bytes):
    with pytest.raises(DecodeError, match="entry 3 is bad"):
        read_item(BenchmarkItem("1", video_bytes(16), "v", problem="entry 3 is bad"), CLIP, 20)


def test_bounds_beyond_the_end_are_cut_there(video_bytes):
    video = read_item(BenchmarkItem("1", video_bytes(24), "v", bounds=(1.0, 99.0)), CLIP, 20)
    assert frame_numbers(video) == [list(range(8, 24))]


def test_a_part_behind_the_end_is_an_error(video_bytes):
    with pytest.raises(DecodeError, match=r"the part from 5 s on, of 2\.00 s"):
        read_item(BenchmarkItem("1", video_bytes(16), "v", bounds=(5.0, 7.0)), CLIP, 20)


def test_a_folder_of_frames_is_a_video_at_its_rate(tmp_path):
    for number in range(24):
        Image.new("RGB", (32, 32), (10 + 7 * number,) * 3).save(tmp_path / f"{number + 1:05d}.png")
    clip = ClipConfig(frames=4, fps=2, short_videos="squeeze")
    item = BenchmarkItem("1", tmp_path, "v", frame_rate=4.0, bounds=(1.0, 5.0))
    assert frame_numbers(read_item(item, clip, 20)) == [[4, 6, 8, 10], [12, 14, 16, 18]]
    assert frame_numbers(read_item(item, clip, 1)) == [[4, 6, 8, 10]]


def test_a_folder_of_frames_is_resized_by_the_runs_filter(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 86, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    # Short side 32, long side 57.33 rounded down; the middle 32 columns begin at round(12.5), half to even.
    expected = np.asarray(Image.fromarray(pixels).resize((57, 32), Image.Resampling.BILINEAR))[:, 12:44]
    clip = ClipConfig(frames=1, fps=1, short_videos="squeeze", resize="pil_bilinear")
    read = read_item(BenchmarkItem("1", tmp_path, "v", frame_rate=1.0), clip, 1)
    np.testing.assert_array_equal(read[0, 0].transpose(1, 2, 0), expected)


def test_sparse_frames_are_the_same_pictures(video_bytes):
    item = BenchmarkItem("1", video_bytes(32), "v", bounds=(0.5, 3.9))
    dense, sparse = (read_item(item, ClipConfig(short_videos="squeeze", sparse_frames=n), 20) for n in (None, 5))
    np.testing.assert_array_equal(sparse, dense[:, [0, 4, 8, 12, 15]])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DecodeError, match="no picture"):
        read_item(BenchmarkItem("1", tmp_path, "v", frame_rate=3.0), CLIP, 20)
