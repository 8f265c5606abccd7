"""The loaders that are compared do equal work: the plain decoder shows the frames that this library shows."""

import numpy as np
import pytest
import torch

from benchmarks.loaders.inputs import write_tars, write_video
from benchmarks.loaders.measure import measured
from benchmarks.loaders.plain_decoder import decode_plainly, placed
from benchmarks.loaders.run import compared
from benchmarks.loaders.ways import BATCH, WAYS
from divot_datamodules.decoding.video import decode_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loaders")
    (folder / "files").mkdir()
    paths = [folder / "files" / f"k{number}.mp4" for number in range(BATCH)]
    for number, path in enumerate(paths):
        write_video(path, 3 * number, seconds=3)
    write_tars(folder / "tars", paths)
    return folder


@pytest.mark.parametrize("fraction", [0.0, 0.37, 0.9])
def test_the_plain_decoder_shows_the_frames_of_this_decoder(folder, fraction):
    path = folder / "files" / "k0.mp4"
    plain = decode_plainly(path, fraction, 65)  # to an even width swscale's rgb24 has half of the colour
    ours = decode_frames(path, placed(fraction, 3.0), (65, 65))
    assert np.array_equal(plain, ours)


@pytest.mark.parametrize("way", ["divot", "pyav"])
def test_a_way_gives_batches_and_its_cost(folder, way, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    batches = WAYS[way](folder, 0, 32)
    assert next(batches).shape == (BATCH, 16, 3, 32, 32)
    figures = measured(iter([torch.zeros(1)] * 4), 1)
    assert set(figures) == {"cpu_ms_per_clip", "clips_per_s"}


def test_ratios_are_those_of_one_round():
    rounds = [
        {"divot": {"cpu_ms_per_clip": 20.0}, "pyav": {"cpu_ms_per_clip": 30.0}},
        {"divot": {"cpu_ms_per_clip": 40.0}, "pyav": {"cpu_ms_per_clip": 48.0}},
    ]
    assert compared(rounds)["pyav"]["times_ours"] == [1.35, 1.2, 1.5]
