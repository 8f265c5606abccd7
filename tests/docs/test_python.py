"""The code of docs/using/python.md runs, and shows every public name."""

import re
from pathlib import Path

import pytest
import torch

import divot_lightning
from divot_datamodules.decoding.video_writing import encode_video
from tests.divot_lightning.evaluation.conftest import tiny_run  # noqa: F401

PAGE = (Path(__file__).parents[2] / "docs" / "using" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.usefixtures("tiny_run")
def test_the_code_of_the_page_runs(request, tmp_path, monkeypatch):
    run = request.getfixturevalue("tiny_run")
    monkeypatch.chdir(tmp_path)
    video = torch.randint(0, 256, (2, 16, 3, 32, 32), dtype=torch.uint8)
    Path("clip.mp4").write_bytes(encode_video(video[0].numpy(), 8))
    names = {"run": run, "detokenizer": run, "video": video}
    for block in BLOCKS:
        exec(block, names)
    assert len(names["answers"]) == 2
    assert names["generated"].video_NFCHW.shape == (2, 16, 3, 32, 32)
    assert [path.name for path in names["paths"]] == ["red-0.mp4", "red-1.mp4"]
    assert [clips.prompt for clips in names["sharp"]] == ["a red circle", "a blue square"]
    assert names["features"].shape == (2, 3, 4)
    assert names["decoded"].shape == video.shape
    assert len(names["texts"]) == len(names["story"].parts)
    assert Path("story", "story.json").is_file()
    assert Path("reconstructed_compare.mp4").is_file()
    assert Path("my_tokenizer", "config.json").is_file()
    assert names["small"].config.num_tokens == 8


def test_the_page_shows_every_public_name():
    shown = {
        name
        for block in BLOCKS
        for line in re.findall(r"from divot_lightning import (.*)", block)
        for name in line.split(", ")
    }
    assert shown == set(divot_lightning.__all__)
