from types import SimpleNamespace

import pytest

from divot_lightning.errors import UserError
from divot_lightning.inference.run_config import run_clip_config, run_template

TOKENIZER = SimpleNamespace(image_size=48)


def test_form_of_prompts_and_size_of_clips_are_the_runs_own(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "data: {class_path: x.Y, init_args: {template: instruction, clip: {height: 24, width: 32, fps: 4}}}"
    )
    assert run_template(tmp_path) == "instruction"
    clip = run_clip_config(tmp_path, TOKENIZER)
    assert (clip.height, clip.width, clip.fps, clip.short_videos) == (24, 32, 4, "squeeze")


def test_a_folder_without_settings_gives_the_bare_form_and_the_tokenizers_size(tmp_path):
    assert run_template(tmp_path) == "pretraining"
    assert run_clip_config(tmp_path, TOKENIZER).height == 48


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text("data: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        run_template(tmp_path)


def test_inference_resizes_as_training_and_takes_media_of_any_size_and_length(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "data: {init_args: {clip: {min_side: 100, min_picture_side: 200, min_aspect: 0.3, cover: equal, "
        "random_starts: true, resize: pil_bilinear}}}"
    )
    clip = run_clip_config(tmp_path, TOKENIZER)
    assert clip.resize == "pil_bilinear"
    assert (clip.min_side, clip.min_picture_side, clip.min_aspect, clip.cover) == (1, 1, 0.0, "consecutive")
