import json

import pytest
import torch

from divot_datamodules.decoding.video import decode_frames
from divot_datamodules.tasks.built_in import GenerateTask
from divot_lightning.checkpoint.components import save_component
from divot_lightning.cli.generate import main
from divot_lightning.errors import UserError
from divot_lightning.inference.batches import ClipSampling, generate_files
from divot_lightning.inference.clip_requests import ClipOpening, ClipRequest
from divot_lightning.inference.generate import generate_clip_features
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.inference.results import output_paths
from divot_lightning.models.video_llm.story import StorySampling
from divot_lightning.parts.segments import Clips, Text


@pytest.fixture(scope="module")
def models(llm_run):
    return LoadedRun(llm_run)


@pytest.mark.parametrize("template", ["pretraining", "instruction"])
def test_the_prompt_is_a_training_sample(template):
    prompt = ClipRequest().segments("a red circle", template)
    assert prompt[-1] == Clips(1, "generate", learn=template == "instruction")
    assert "a red circle" in prompt[0].text
    import numpy as np

    assert prompt == GenerateTask(template).segments({"caption": "a red circle"}, np.random.default_rng(0))


def test_one_clip_per_text_and_equal_for_equal_seeds(models):
    texts = ["a red circle", "a blue square"]
    first, again, other = ([clip for clip, _ in models.generate(texts, seed=seed)] for seed in (1, 1, 2))
    assert [clip.shape for clip in first] == [(16, 3, 32, 32)] * 2
    assert first[0].dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_sampling_setting_of_the_head_changes_the_features_and_not_the_run(models, llm_run):
    narrow = generate_clip_features(models.video_llm, ["a red circle"] * 64)
    still = LoadedRun(llm_run, head={"variance_scale": "0"})
    assert still.video_llm.head.variance_scale == 0
    repeated = generate_clip_features(still.video_llm, ["a red circle"] * 64)
    assert len(repeated.unique(dim=0)) < len(narrow.unique(dim=0))  # without variance only the 16 components are left
    assert LoadedRun(llm_run).video_llm.head.variance_scale == 0.1


def test_the_command_passes_settings_of_the_head_and_lists_what_there_is(llm_run, tmp_path):
    words = [str(llm_run), "--prompt", "a red circle", "--output", str(tmp_path / "x.gif")]
    assert main([*words, "--head.variance_scale", "0.5"]) == 0
    assert (tmp_path / "x.gif").is_file()
    with pytest.raises(UserError, match=r"GMMHead has no sampling setting guidance; .*: variance_scale \(0\.1\)"):
        main([*words, "--head.guidance", "2"])


def test_many_texts_go_through_in_batches(models):
    features = generate_clip_features(models.video_llm, ["a red circle"] * 5, batch_size=2)
    assert features.shape == (5, 3, 4)
    assert len(features.unique(dim=0)) == 5


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_files_hold_the_clips(models, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    generated = list(generate_files(DivotPipeline(models), ["a red circle"], output, ClipSampling(num=2)))
    paths = [path for _, path in generated]
    assert [path.name for path in paths] == [f"out-0.{suffix}", f"out-1.{suffix}"]
    for path in paths:
        assert decode_frames(path, [0.0, 1.0]).shape == (2, 3, 32, 32)


def test_a_file_that_is_no_video_is_refused():
    with pytest.raises(UserError, match=r"out\.txt names no kind of video.*\.mp4"):
        output_paths("out.txt", 1)


def test_a_run_without_detokenizer_says_how_to_give_one(models, llm_run, tmp_path):
    save_component(models.video_llm, tmp_path / "video_llm")
    save_component(models.tokenizer, tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"has no detokenizer(.|\n)*--detokenizer RUN"):
        list(LoadedRun(tmp_path).generate(["a red circle"]))
    assert len(list(LoadedRun(tmp_path, llm_run).generate(["a red circle"]))) == 1


def test_a_detokenizer_of_other_tokens_is_refused(models, llm_run, tmp_path):
    config = models.detokenizer.config
    from dataclasses import replace

    other = type(models.detokenizer)(replace(config, num_tokens=5))
    save_component(other, tmp_path / "detokenizer")
    with pytest.raises(UserError, match=r"3 features of width 4.*5 of width 4"):
        list(LoadedRun(llm_run, tmp_path).generate(["a red circle"]))


def test_the_command_writes_files_and_prints_their_paths(llm_run, tmp_path, capsys):
    from divot_lightning.cli.generate import main

    output = tmp_path / "new" / "clip.mp4"
    assert main([str(llm_run), "--prompt", "a red circle", "--output", str(output), "--num", "2"]) == 0
    names = capsys.readouterr().out.split()
    assert names == [str(output.with_name(f"clip-{index}.mp4")) for index in range(2)]
    assert sorted(map(str, output.parent.glob("*.mp4"))) == names
    stored = [json.loads(path.read_text()) for path in sorted(output.parent.glob("*.json"))]
    assert [(one["prompt"], one["seed"], one["number"]) for one in stored] == [("a red circle", 0, n) for n in range(2)]
    assert stored[0]["head"] == {"variance_scale": 0.1}
    assert stored[0]["sampling"]["steps"] == 2


def test_a_request_is_the_given_one_or_a_phrase_of_the_run():
    asked = ClipRequest("Show {} now").segments("a {} dog", "instruction")
    assert asked[0].text == "[INST] Show a {} dog now [/INST]\n"
    trained = ClipRequest(task_settings={"video_prompts": ["Film {}"]})
    assert trained.segments("a dog", "instruction")[0].text == "[INST] Film a dog [/INST]\n"
    assert ClipRequest.released().segments("a dog", "USER: {} ASSISTANT: ")[0].text == (
        "USER: Generate a video of a dog ASSISTANT: "
    )


@pytest.mark.parametrize("request_", [ClipRequest("Show {}"), ClipRequest(opening=ClipOpening())])
def test_a_model_of_bare_prompts_has_learned_no_request(models, request_):
    with pytest.raises(UserError, match="has learned no request"):
        generate_clip_features(models.video_llm, ["a red circle"], request=request_)


def test_a_clip_that_the_model_does_not_open_is_opened_after_its_words(models, caplog):
    video_llm, asked = models.video_llm, ClipRequest(opening=ClipOpening(3, text_temperature=0.0))
    prompt = asked.segments("a red circle", "instruction")
    (written,) = video_llm.generate_story(prompt[:-1], num_clips=1, sampling=StorySampling(max_new_tokens=3))
    assert written.features_QC is None
    assert written.text
    features = generate_clip_features(video_llm, ["a red circle"], template="instruction", request=asked, seed=4)
    expected = video_llm.generate_features(
        [[*prompt[:-1], Text(written.text, learn=False), prompt[-1]]], generator=torch.Generator().manual_seed(4)
    )
    torch.testing.assert_close(features, expected)
    assert "1 of 1 clips: the model opened none by itself" in caplog.text


def test_the_command_asks_in_given_words_and_notes_them(llm_run, tmp_path, capsys):
    words = [str(llm_run), "--prompt", "a red circle", "--output", str(tmp_path / "x.gif"), "--template", "instruction"]
    assert main([*words, "--request", "Generate a video of {}", "--open-clip", "--max-new-tokens", "2"]) == 0
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored["request"] == "Generate a video of {}"
    assert stored["opening"] == {"max_new_tokens": 2, "text_temperature": 0.7, "top_p": 0.5}
    with pytest.raises(UserError, match="--top-p has no effect without --open-clip"):
        main([*words, "--top-p", "0.5"])
    with pytest.raises(UserError, match="top_p is 0"):
        main([*words, "--open-clip", "--top-p", "0"])
    with pytest.raises(UserError, match=r"phrase 'a clip'; it must be a text with one \{\}"):
        main([*words, "--request", "a clip"])
