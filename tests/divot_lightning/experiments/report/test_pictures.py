"""Moving pictures hold the very pixels of the clip."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from divot_datamodules.decoding.video_writing import side_by_side
from divot_lightning.errors import UserError
from divot_lightning.experiments.report.pictures import data_uri, webp_bytes


def clip(frames: int = 5, height: int = 8, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 3, height, width), dtype=np.uint8)


def test_every_pixel_survives():
    video = clip()
    image = Image.open(io.BytesIO(webp_bytes(video, 8)))
    assert image.n_frames == len(video)
    for at, frame in enumerate(video):
        image.seek(at)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame.transpose(1, 2, 0))


def test_a_large_clip_is_nearly_the_same_in_far_fewer_bytes():
    rows, columns = np.mgrid[:160, :160]
    smooth = np.stack([np.stack([rows, columns, (rows + columns) // 2]) + at for at in range(4)]).astype(np.uint8)
    encoded = webp_bytes(smooth, 8)
    assert len(encoded) < smooth.nbytes / 20
    shown = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert np.abs(shown.astype(int) - smooth[0].transpose(1, 2, 0)).mean() < 3


def test_frames_last_as_long_as_the_rate_says():
    image = Image.open(io.BytesIO(webp_bytes(clip(), 8)))
    image.load()
    assert image.info["duration"] == 125
    assert image.info["loop"] == 0


def test_uri_holds_the_file():
    kind, _, data = data_uri(clip(), 4).partition(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(data) == webp_bytes(clip(), 4)


def test_clips_beside_each_other_keep_their_pixels():
    left, right = clip(width=6), clip(width=4)
    both = side_by_side(left, right)
    np.testing.assert_array_equal(both[..., :6], left)
    np.testing.assert_array_equal(both[..., 8:], right)
    assert (both[..., 6:8] == 255).all()


def test_clips_of_different_heights_are_refused():
    with pytest.raises(UserError, match=r"\(5, 3, 9, 12\)"):
        side_by_side(clip(), clip(height=9))


def test_floats_are_refused():
    with pytest.raises(UserError, match="float64"):
        webp_bytes(clip().astype(np.float64), 8)
