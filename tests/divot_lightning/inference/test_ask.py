import numpy as np
import pytest
import torch

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.tasks.built_in import CaptionTask, QuestionTask
from divot_datamodules.toy.world import ToyWorld
from divot_lightning.errors import UserError
from divot_lightning.inference.ask import (
    answer,
    caption_prompt,
    question_prompt,
)
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.inference.media_input import read_video
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.parts.segments import Clips, Text


@pytest.mark.parametrize("template", ["pretraining", "instruction"])
def test_prompts_are_what_training_samples_have_before_the_answer(template):
    sample = {"question": "What colour is it ?", "answer": "red", "caption": "a red circle"}
    rng = np.random.default_rng(0)
    sample_segments = QuestionTask(template).segments(sample, rng, num_clips=2)
    assert [*question_prompt(sample["question"], 2, template), Text("red", learn=True)] == sample_segments
    described = CaptionTask(template).segments(sample, np.random.default_rng(0))
    assert [*caption_prompt(1, template), Text("a red circle", learn=True)] == described


@pytest.fixture
def video(tmp_path):
    world = ToyWorld()
    frames = [world.render(world.sample("train", np.random.default_rng(seed))) for seed in (0, 1)]
    return write_video(tmp_path / "two_clips.mp4", np.concatenate(frames), 8)


def test_a_video_is_read_clip_by_clip(video):
    frames, kind = read_video(video, ClipConfig())
    assert frames.shape == (2, 16, 3, 32, 32)
    assert kind == "video"
    assert read_video(video, ClipConfig(), max_clips=1)[0].shape[0] == 1


def test_a_picture_is_one_clip(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    frames, kind = read_video(tmp_path / "red.png", ClipConfig())
    assert frames.shape == (1, 16, 3, 32, 32)
    assert kind == "image"


def test_batching_changes_no_answer(llm_run):
    models = LoadedRun(llm_run)
    features = [torch.randn(count, 3, 4) for count in (2, 1, 3, 1)]
    prompts = [question_prompt("What colour is it ?", len(part), "instruction") for part in features]
    together = answer(models.video_llm, prompts, features, max_new_tokens=5)
    alone = [answer(models.video_llm, [p], [f], max_new_tokens=5)[0] for p, f in zip(prompts, features, strict=True)]
    in_twos = answer(models.video_llm, prompts, features, max_new_tokens=5, batch_size=2)
    assert together == alone == in_twos
    assert len(set(together)) > 1


def test_a_file_is_asked_and_described(llm_run, video):
    pipeline = DivotPipeline.from_pretrained(llm_run, template="instruction")
    models = pipeline.models
    answers = [answer.text for answer in pipeline.ask(video, ["What colour is it ?", ""])]
    features = models.encode(torch.from_numpy(read_video(video, ClipConfig())[0]))
    prompts = [question_prompt("What colour is it ?", 2, "instruction"), caption_prompt(2, "instruction")]
    assert answers == answer(models.video_llm, prompts, [features, features])


def test_the_kind_of_the_file_reaches_the_prompt():
    assert Clips(1, "read", "image") in question_prompt("What ?", 1, "instruction", "image")


def test_files_that_give_no_clip_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.mp4"):
        read_video(tmp_path / "nothing.mp4", ClipConfig())
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"text\.mp4 gives no clip: undecodable"):
        read_video(tmp_path / "text.mp4", ClipConfig())


def test_the_command_prints_answers(llm_run, video, capsys):
    from divot_lightning.cli.ask import main

    assert main([str(llm_run), str(video), "--question", "What colour is it ?", "--jsonl"]) == 0
    import json

    printed = json.loads(capsys.readouterr().out)
    assert printed["answer"] == DivotPipeline.from_pretrained(llm_run).ask(video, "What colour is it ?").text
