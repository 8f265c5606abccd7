import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from divot_datamodules.decoding.video import decode_frames
from divot_datamodules.decoding.video_writing import write_video
from divot_lightning.errors import UserError
from divot_lightning.inference.ask import media_prompt
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.inference.media_input import read_middle_clip, read_video
from divot_lightning.inference.run_config import run_clip_config, run_fps, run_tasks, run_template

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


def as_released(pixels_HW3):
    """Resize (48, 86) to 32 rows and 57 columns (57.33 rounded down), and take the middle 32 from column 12 on."""
    picture = Image.fromarray(pixels_HW3).resize((57, 32), Image.Resampling.BILINEAR)
    return np.asarray(picture)[:, 12:44].transpose(2, 0, 1)


@pytest.mark.parametrize("given", ["file", "array"])
def test_one_filter_holds_for_the_tokenizers_and_the_detokenizers_clips(llm_run, tmp_path, given):
    run = tmp_path / "run"
    shutil.copytree(llm_run, run)
    (run / "config.yaml").write_text("data: {init_args: {clip: {height: 32, width: 32, resize: pil_bilinear}}}")
    noise = np.random.default_rng(0).integers(0, 256, (16, 3, 48, 86), dtype=np.uint8)
    video = write_video(tmp_path / "a.mp4", noise, 8.0)
    full = decode_frames(video, [index / 8 for index in range(16)]).transpose(0, 2, 3, 1)
    expected = np.stack([as_released(frame) for frame in full])
    models, media = LoadedRun(run), video if given == "file" else full
    np.testing.assert_array_equal(read_middle_clip(media, models.decoded_clip)[0], expected)
    np.testing.assert_array_equal(read_video(media, models.clip)[0][0], expected[[0, 4, 8, 12, 15]])


def test_settings_of_tasks_are_those_of_the_first_source_that_has_them(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "data: {init_args: {tasks: {caption: 1.0}, train: [{path: a, tasks: {generate: {weight: 1, init_args: "
        "{video_prompts: ['Film {}']}}}}, {path: b, tasks: {generate: 1.0}}, {path: c}]}}"
    )
    assert run_tasks(tmp_path) == {"generate": {"video_prompts": ["Film {}"]}, "caption": {}}


def test_settings_of_tasks_that_these_do_not_take_are_named():
    wrong = {"nope": 1}
    for make in (
        lambda: ClipRequest(task_settings=wrong).segments("a red circle", "pretraining"),
        lambda: media_prompt("what ?", ["video"], "instruction", tasks={"conversation": wrong}),
        lambda: media_prompt("", ["video"], "instruction", tasks={"caption": wrong}),
    ):
        with pytest.raises(UserError, match=r"settings that it does not take: .*'nope'"):
            make()


@pytest.mark.parametrize("clip", ["3", "{fps: x}", "{height: [1]}"])
def test_settings_of_clips_that_are_none_are_named(tmp_path, clip):
    (tmp_path / "config.yaml").write_text(f"data: {{init_args: {{clip: {clip}}}}}")
    with pytest.raises(UserError, match=r"config\.yaml: data\.clip holds no settings of clips"):
        run_fps(tmp_path)
