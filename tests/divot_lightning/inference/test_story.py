"""A model that was trained on stories tells them: it opens clips by itself and reads back what it generated."""

import json
import logging

import numpy as np
import pytest
import torch

from divot_datamodules.tasks.built_in import StoryTask
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_heads.mse import MSEHead
from divot_lightning import DivotPipeline, StorySampling
from divot_lightning.checkpoint.components import save_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.cli.story import main
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.segments import Clips, Text

INSTRUCTION, SENTENCES = "a red circle", ["a circle moves up", "a square moves left", "a red cross"]
MODES = ["query_bidirectional", "query_causal", "autoregressive"]


def storyteller(folder, mode):
    """A tiny video LLM that was trained on one story, to the word."""
    torch.manual_seed(0)
    toy_text_tokenizer().save_pretrained(folder / "text")
    model = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = VideoLLMConfig(
        language_model_config={**model, "intermediate_size": 64},
        text_tokenizer=str(folder / "text"),
        num_queries=3,
        feature_dim=4,
        generation_mode=mode,
    )
    video_llm = VideoLLM(config, MSEHead)
    story = {"story": {"instruction": INSTRUCTION, "texts": SENTENCES}}
    segments = StoryTask("instruction").segments(story, np.random.default_rng(0), num_clips=3)
    features = torch.randn(3, 3, 4)
    optimizer = torch.optim.AdamW(video_llm.parameters(), lr=1e-2)
    batch = video_llm.sequences([segments])
    for _ in range(80):
        output = video_llm(batch, features)
        optimizer.zero_grad()
        (output.text_loss + output.head_loss).backward()
        optimizer.step()
    return video_llm.eval(), features


@pytest.fixture(scope="module", params=MODES)
def told(request, tmp_path_factory):
    return storyteller(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def story_run(tmp_path_factory, llm_run):
    folder = tmp_path_factory.mktemp("story_run")
    video_llm, _ = storyteller(folder, MODES[0])
    save_component(video_llm, folder / "video_llm")
    for name in ("tokenizer", "detokenizer"):
        (folder / name).symlink_to(find_component(llm_run, name))
    settings = "data: {class_path: x.Y, init_args: {template: instruction, tasks: {story: 1.0}}}"
    (folder / "config.yaml").write_text(settings)
    return folder


def test_the_model_opens_its_clips_and_ends_by_itself(told):
    video_llm, features = told
    steps = video_llm.generate_story(StoryTask("instruction").user_turn(INSTRUCTION), num_clips=3)
    assert [step.text for step in steps] == SENTENCES
    assert [step.kind for step in steps] == ["video"] * 3
    found = torch.stack([step.features_QC for step in steps])
    assert (found - features).abs().mean() < 0.5 * (features - features.mean()).abs().mean()
    longer = video_llm.generate_story(StoryTask("instruction").user_turn(INSTRUCTION), num_clips=9)
    assert len(longer) == 3


def test_the_cache_changes_nothing(told):
    """Each clip is the one that `generate_features`, which has no cache, generates after the story so far."""
    video_llm, _ = told
    segments = StoryTask("instruction").user_turn(INSTRUCTION)
    steps = video_llm.generate_story(segments, num_clips=3)
    known = []
    for step in steps:
        segments = [*segments, Text(step.text, learn=True), Clips(1, "generate", learn=True)]
        (clip,) = video_llm.generate_features([segments], torch.stack(known) if known else None)
        torch.testing.assert_close(step.features_QC, clip, atol=1e-4, rtol=1e-4)
        known.append(step.features_QC)


def test_a_clip_that_is_read_back_decides_what_follows(told, monkeypatch):
    video_llm, _ = told
    segments = StoryTask("instruction").user_turn(INSTRUCTION)
    usual = video_llm.generate_story(segments, num_clips=2)
    sample = type(video_llm.head).sample
    monkeypatch.setattr(type(video_llm.head), "sample", lambda head, hidden, **rest: 5 + sample(head, hidden, **rest))
    other = video_llm.generate_story(segments, num_clips=2, sampling=StorySampling(max_new_tokens=4))
    # Either other words follow, or a clip that differs by more than the 5 that are added to every feature.
    same_words = [step.text for step in other] == [step.text for step in usual]
    assert not same_words or not torch.allclose(other[1].features_QC - 5, usual[1].features_QC, atol=1e-3)


def test_a_story_of_the_pipeline_has_decoded_clips(story_run):
    pipeline = DivotPipeline.from_pretrained(story_run)
    story = pipeline.story(INSTRUCTION)
    assert [part.text for part in story.parts] == SENTENCES
    features = torch.stack([part.features_QC for part in story.parts])
    (clips,) = pipeline.models.decode(features, torch.Generator().manual_seed(0))
    assert torch.equal(torch.stack([part.video_FCHW for part in story.parts]), clips)
    both = pipeline.story([INSTRUCTION, "a blue square"], seed=1)
    for one in both:
        again = pipeline.story(one.instruction, seed=1)
        assert [part.text for part in one.parts] == [part.text for part in again.parts]
        for part, other in zip(one.parts, again.parts, strict=True):
            assert (part.video_FCHW is None) == (other.video_FCHW is None)
            assert part.video_FCHW is None or torch.equal(part.video_FCHW, other.video_FCHW)


def test_too_long_a_sentence_and_another_task_are_reported(llm_run, story_run, caplog):
    with caplog.at_level(logging.WARNING):
        short = DivotPipeline.from_pretrained(story_run).story(INSTRUCTION, sampling=StorySampling(max_new_tokens=2))
    assert [part.video_FCHW for part in short.parts] == [None]
    assert "0 of 3 clips: the model wrote 2 tokens without opening a clip" in caplog.text
    pipeline = DivotPipeline.from_pretrained(llm_run)
    pipeline.models.tasks = {"caption": {}}
    with caplog.at_level(logging.WARNING):
        pipeline.story(INSTRUCTION, 1)
    assert "was trained on caption, not on the task story" in caplog.text
    with pytest.raises(UserError, match="number of clips is 0"):
        pipeline.story(INSTRUCTION, 0)


def test_the_command_writes_clips_and_prints_sentences(story_run, tmp_path, capsys):
    assert main([str(story_run), INSTRUCTION, "--output", str(tmp_path / "s")]) == 0
    expected = [f"{text}\t{tmp_path / 's' / f'clip-{number}.mp4'}" for number, text in enumerate(SENTENCES)]
    assert capsys.readouterr().out.splitlines() == expected
    stored = json.loads((tmp_path / "s" / "story.json").read_text())
    assert [part["file"] for part in stored["parts"]] == ["clip-0.mp4", "clip-1.mp4", "clip-2.mp4"]
    assert (stored["instruction"], stored["seed"], stored["template"]) == (INSTRUCTION, 0, "instruction")


def test_a_file_of_instructions_is_continued(story_run, tmp_path, capsys, monkeypatch):
    (tmp_path / "all.txt").write_text(f'{INSTRUCTION}\n\n{{"instruction": "a blue square", "seed": 3}}\n')
    words = [str(story_run), "--prompts", str(tmp_path / "all.txt"), "--output", str(tmp_path / "s"), "--jsonl"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert [json.loads(line)["seed"] for line in first.splitlines()] == [0, 3]
    (tmp_path / "s" / "1" / "story.json").unlink()
    done = []
    story = DivotPipeline.story

    def counted(pipeline, text, *args, **options):
        done.append(text)
        return story(pipeline, text, *args, **options)

    monkeypatch.setattr(DivotPipeline, "story", counted)
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert done == ["a blue square"]


def test_what_the_command_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match="--num-clips is 0"):
        main(["run", "x", "--output", "o", "--num-clips", "0"])
    with pytest.raises(UserError, match="either an instruction, or --prompts"):
        main(["run", "--output", "o"])
