import io

import av
import numpy as np
import pytest

from divot_datamodules.decoding.video_writing import CODECS, encode_video, write_video
from divot_datamodules.toy.world import ToyWorld
from divot_lightning.errors import UserError


def toy_clip(size=32, seed=0):
    world = ToyWorld(size=size)
    return world.render(world.sample("train", np.random.default_rng(seed)))


def decode_all(data):
    with av.open(io.BytesIO(data)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return container.format.name, np.stack(pictures).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("container", "mean_error"), [("mp4", 1), ("mkv", 1), ("webm", 2), ("avi", 6), ("gif", 1)])
def test_every_container_gives_the_frames_back(container, mean_error):
    video = toy_clip()
    name, decoded = decode_all(encode_video(video, 8, container=container))
    assert decoded.shape == video.shape
    assert {"mkv": "matroska", "webm": "webm"}.get(container, container) in name
    assert np.abs(decoded.astype(int) - video).mean() < mean_error


def test_rate_factor_zero_keeps_toy_clips_within_three_levels():
    for seed in range(3):
        video = toy_clip(seed=seed)
        assert np.abs(decode_all(encode_video(video, 8, crf=0))[1].astype(int) - video).max() <= 3


def test_equal_frames_give_equal_bytes():
    video = toy_clip()
    found = set()
    for value in range(40):
        # An encoder that reads memory it never wrote gives other bytes when what lies there changes.
        rubbish = [np.full(size, value, np.uint8) for size in (500, 4_000, 30_000, 300_000)]
        del rubbish
        found.add(encode_video(video, 8))
    assert len(found) == 1


@pytest.mark.parametrize("fps", [8, 25, 29.97])
def test_the_rate_is_kept(fps):
    with av.open(io.BytesIO(encode_video(toy_clip(), fps))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-4)


def test_phones_can_have_half_resolution_chroma(tmp_path):
    path = write_video(tmp_path / "clip.mp4", toy_clip(), 8, pixel_format="yuv420p")
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_a_written_file_is_complete_or_absent(tmp_path, suffix):
    path = write_video(tmp_path / "new" / f"clip.{suffix}", toy_clip(), 8)
    assert [path] == list((tmp_path / "new").iterdir())


def test_unknown_containers_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'wmv'.*mp4"):
        write_video(tmp_path / "clip.wmv", toy_clip(), 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("video", [np.zeros((2, 3, 8, 8)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 3, 8, 8))])
def test_other_arrays_are_refused(video):
    with pytest.raises(UserError, match="uint8"):
        encode_video(video, 8)
